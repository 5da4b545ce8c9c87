"""The output `status`: what became of each element of a request."""

from enum import IntEnum


class Status(IntEnum):
    """Status of one element; others of the request are not affected."""

    OK = 0
    NOT_AN_IMAGE = 1
    TOO_MANY_PIXELS = 2
    WRONG_CRC = 3
    UNKNOWN_SAMPLE = 4
    NOT_FINITE = 5  # the teacher's answer
    UNREADABLE = 6  # the sample's image
    NOT_NOW = 7  # this machine is in trouble, the image may be good: ask again
