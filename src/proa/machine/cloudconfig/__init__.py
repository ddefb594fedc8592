"""Cloud-config: one file makes the machine.

The way of a document, each step a plain function of the one before it:

    sources  where it lies: a disk, a file, a metadata service → bytes
    parse    what it is, and its YAML, every value with a line → nodes
    document what it says: keys, types, values (``keys/``)     → Config + problems
             or the same from an Ignition or Butane config (``languages``)
    plan     what that means for a machine                     → a tuple of ``changes``
    apply    the only part that touches anything, with a module for each kind of change:
             ``accounts``, ``placing``, ``certificates``, ``scripts``, ``blocks`` and ``disks``,
             ``mounting``, ``ending``
"""
