"""Who may read a copy: nobody who could not read the original."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Self

from pyendor import system


@dataclass(frozen=True)
class Rights:
    """Who may use a file or a directory.

    Attributes:
        mode: its nine permission bits.
        gid: the group that three of them speak of.
    """

    mode: int
    gid: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """The rights that a status tells."""
        return cls(stat.S_IMODE(status.st_mode) & 0o777, status.st_gid)

    def within(self, gid: int) -> int:
        """The most that a copy of this group may allow, as permission bits.

        A copy of another group gives to that group, and to all others, what both the group and all others may
        do with the original: members of either group may be among the others of the other file.
        """
        if gid == self.gid:
            return self.mode
        common = self.mode >> 3 & self.mode & 0o7
        return self.mode & 0o700 | common << 3 | common


def of_new(made: os.stat_result, most: int, like: Rights | None, replaced: os.stat_result | None) -> int:
    """The permission bits of something new.

    Args:
        made: its status when it was created, which tells its group.
        most: the bits to choose from.
        like: the rights of what it is a copy of.
        replaced: the status of what it replaces, whose bits are the most then; else the umask applies.
    """
    mode = Rights.of(replaced).within(made.st_gid) if replaced is not None else most & ~system.umask()
    return mode if like is None else mode & most & like.within(made.st_gid)
