"""`python3 -m asya_injector`: the same program as the `asya-injector` command."""

from asya_injector.cli.main import main

main()
