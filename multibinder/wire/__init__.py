"""Define what both ends of the control socket share: addresses, options, messages, decoder, transport and client."""
