"""`python -m negtemp_data` is `negtemp`."""

from negtemp_data.cli.main import main

if __name__ == "__main__":
    main()
