"""The network of a machine: from any form that people and clouds describe it in to networkd's.

The way of a description, each step a plain function of the one before it:

    forms    which form it is, and what it says              → Network + problems
             (v1, v2, eni, openstack, packet, vmware: one reader for each form)
    model    what a network is, in no form in particular
    render   what systemd-networkd reads                     → a tuple of files

``values`` has what an address, a name or a number must look like. Everything that is written to a
file has been through it, so no text of a description can become another line of a unit file.
"""
