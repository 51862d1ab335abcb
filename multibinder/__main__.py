from multibinder.cli.entry import main

main()
