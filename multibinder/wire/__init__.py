"""What both ends of the control socket share: addresses, options, messages, the decoder, the transport, the client."""
