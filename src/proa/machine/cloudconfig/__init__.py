"""Cloud-config: one file makes the machine.

The way of a document, each step a plain function of the one before it:

    source   where it lies (config drive, NoCloud disk)       → bytes
    parse    what it is, and its YAML, every value with a line → nodes
    document what it says: keys, types, values                 → Config + problems
    changes  what that means for a machine                     → a tuple of changes
    apply    the only part that touches anything
"""
