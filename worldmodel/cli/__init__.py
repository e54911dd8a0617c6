"""The program ``worldmodel``: one module per command.

A command is a dataclass whose fields are its options. It calls the library and returns text and JSON for its result, which
`worldmodel.cli.main` prints. Only this package prints, and nothing else imports it: everything that a command computes is also
available as a library call. The files in ``scripts/`` call the same commands.

Example:
    >>> from worldmodel.cli.collect import Collect
    >>> from worldmodel.cli.parsing import parse
    >>> command = parse(Collect, ["--env", "CartPole-v1", "--out", "runs/a", "--episodes", "5"], name="worldmodel collect")
    >>> command.episodes, command.policy
    (5, 'random')
"""
