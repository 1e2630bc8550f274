"""New names for the classes of the 20 images, written by hand before anything was measured with them.

Three wordings, each a task of its own. None uses the word that ImageNet has for the class; the coarse kinds put several
classes under one name.
"""

from __future__ import annotations

OTHER_NAMES = {
    22: "national bird of the United States",  # bald eagle
    99: "large waterfowl with a long neck",  # goose
    129: "wading bird with a flat bill",  # spoonbill
    243: "large guard dog",  # bullmastiff
    251: "spotted dog",  # Dalmatian
    305: "scarab",  # dung beetle
    317: "small plant-sucking insect",  # leafhopper
    438: "laboratory glass",  # beaker
    455: "crown cork",  # bottle cap
    471: "piece of artillery",  # cannon
    541: "percussion instrument",  # drum
    559: "collapsible seat",  # folding chair
    609: "off-road vehicle",  # jeep
    630: "loafer",  # slip-on shoe
    741: "mat for worship",  # prayer rug
    853: "straw-covered cottage",  # thatched roof
    915: "round tent of nomads",  # yurt
    949: "red berry",  # strawberry
    990: "conker",  # horse chestnut seed
}
DESCRIPTIONS = {
    22: "a bird of prey with a white head",
    99: "a grey farm bird that honks",
    129: "a white bird that sweeps shallow water with its beak",
    243: "a strong short-haired animal that guards a house",
    251: "a white pet with black spots",
    305: "a black insect that rolls balls of manure",
    317: "a tiny bug that jumps from plant to plant",
    438: "a glass vessel used by chemists",
    455: "the metal lid of a beer",
    471: "an old weapon on wheels that fires iron balls",
    541: "an instrument that is beaten with sticks",
    559: "something to sit on that can be put away",
    609: "a car for rough roads and mountains",
    630: "leather footwear without laces",
    741: "a woven textile to kneel on",
    853: "the top of a cottage made of dry straw",
    915: "a felt dwelling of Mongolian herders",
    949: "a sweet red fruit with small seeds on its skin",
    990: "a brown nut in a spiky green shell",
}
KINDS = {
    **dict.fromkeys((22, 99, 129), "bird"),
    **dict.fromkeys((243, 251), "dog"),
    **dict.fromkeys((305, 317), "insect"),
    **dict.fromkeys((853, 915), "building"),
    **dict.fromkeys((949, 990), "fruit or nut"),
    438: "laboratory equipment",
    455: "lid",
    471: "weapon",
    541: "musical instrument",
    559: "furniture",
    609: "vehicle",
    630: "footwear",
    741: "carpet",
}
WORDINGS = {"other names": OTHER_NAMES, "descriptions": DESCRIPTIONS, "coarse kinds": KINDS}


def candidates(wording: str) -> list[str]:
    """The names to choose from, in alphabetical order, each once.

    Example:
        >>> len(candidates("other names")), len(candidates("coarse kinds"))
        (19, 13)
    """
    return sorted(set(WORDINGS[wording].values()))


def answers(wording: str, labels: list[int]) -> list[int]:
    """Which candidate is right for images of these ImageNet classes.

    Example:
        >>> [candidates("coarse kinds")[i] for i in answers("coarse kinds", [251, 22])]
        ['dog', 'bird']
    """
    names = candidates(wording)
    return [names.index(WORDINGS[wording][label]) for label in labels]
