"""Backbones that timm lacks, written from their papers and registered with timm.

After ``import offramp.zoo``, ``timm.create_model("cct_7_3x1_32")`` builds one like any other
model.
"""

from importlib import import_module

from offramp import vision_cure

vision_cure.ensure()  # the files import timm
# Importing a file registers its models.
for _file in ("cascade", "cct", "evo_levit", "shuffle", "t2t", "vil"):
    import_module(f"offramp.zoo.{_file}")
