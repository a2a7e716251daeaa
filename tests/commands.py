"The command line, called in the tests' own process."
from discdiff_nb import cli


def call(capsys, *words):
    "Exit status, standard output and standard error of a command."
    capsys.readouterr()
    try: status = cli.main([str(w) for w in words])
    except SystemExit as e: status = e.code
    return status, *capsys.readouterr()
