"""The commands of `minires`: a module each, with `add_parser` and `run`, and what they share.

An argument means the same in all of them:

    subparsers   those of the parser of `minires`; the command adds its own
    parser       of one command
    options      the words of the command line, as argparse read them: one value for each option
"""
