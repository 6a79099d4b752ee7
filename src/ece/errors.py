"""What a user did wrong, said in one line."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and how to mend it.

    The command line prints it and exits with code 2; nothing has been written by then.
    """
