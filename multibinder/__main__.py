from multibinder.cli.main import main

main()
