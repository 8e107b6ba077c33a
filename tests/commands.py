"""A command of the project, run inside the test's process."""

from jaxaudio.runtime import command


def run(main, *words, capsys=None):
    """Exit code and what was printed, of a command in this process (on four devices)."""
    try:
        code = command.guarded(main, [str(word) for word in words])
    except SystemExit as stop:  # tyro's
        code = stop.code
    out, err = capsys.readouterr() if capsys else ("", "")
    return code, out, err
