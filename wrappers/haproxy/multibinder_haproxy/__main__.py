from multibinder_haproxy.entry import main

main()
