"""The names of the modalities."""

CATALOG = ("text", "image", "audio")  # those that a catalogue has columns for
JOINT = "joint"  # an item's text, image and audio encoded together, in one input
BEHAVIOUR = "behaviour"  # made from the interaction log, not by an encoder
ENCODED = (*CATALOG, JOINT)
ALL = (*ENCODED, BEHAVIOUR)
