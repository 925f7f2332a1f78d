"""The front door for transformers: importing it makes Endor checkpoints load like any others.

``AutoModel....from_pretrained(path, variant="endor")`` then decodes them while they are read, into the plain
model that the dense checkpoint would give. :func:`from_pretrained` does it in one line and accepts no weight
that is missing. A checkpoint is a directory as section 11 of the specification has it; names and options are
those of transformers. See ``docs/transformers.md``. Needs the extra ``pyendor[transformers]``.
"""

from __future__ import annotations

from pyendor.hf import config, files
from pyendor.hf.config import EndorConfig
from pyendor.hf.models import from_pretrained, save_pretrained

__all__ = ["EndorConfig", "from_pretrained", "save_pretrained"]

files.install()
config.install()
