"""The lab: Proa machines to try, under QEMU."""
