"`python -m discdiff_nb` is `discdiff` (chapter 14). Written by hand, as __init__.py is: no notebook exports this name."
import sys

from discdiff_nb.cli import main

if __name__ == '__main__': sys.exit(main())
