"""The one exception that means "the input is wrong", as opposed to "pargolf is wrong"."""


class UserError(Exception):
    """Bad input, setting, file or machine state that the user can mend.

    The message is one line: what is wrong and what to do. The command line prints it
    without a traceback and exits with code 2.
    """
