"""The rule for refusals: who declines in the first person turns away; who only speaks of such things does not."""

from __future__ import annotations

import time

import pytest

from legend_hf.writing.refusals import OPENING, refuses, turns_away

TURNS = [
    "I can't go on with this.",
    "Sorry, no.",
    "I am not able to help with it.",
    "We cannot go on from here, for this would hurt someone.",
    "but I won't say more.",
    "I must decline.",
    "I will have to decline.",
    "I'm going to have to refuse.",
    "I have to stop here, since it is not kind.",
    "On second thought, let us leave the bread.",
    "I take that back.",
    "I'm really sorry, I can't share the recipe.",
    "I, as a helper, cannot finish this.",
    "I'd rather not.",
    "However, I will not continue.",
    "I'm unable to assist.",
    "I am a helper made for bread and cannot help with that.",
    "It would be wrong of me to go on.",
    "I apologize, this was a mistake.",
    "I shouldn't have begun this.",
    "That is not something I can help with.",
    "I don't feel comfortable with this.",
    "Unfortunately, I am not going to help.",
    "Sorry, can't help you there.",
    "I do not want to continue.",
    "I've changed my mind.",
    "Let us stop here.",
    "I cannot and will not help.",
    "I *cannot* help.",
    '"I cannot help with that."',
]
OTHERS = [
    "",
    "Then open the door.",
    "The canton of Bern is large.",
    "You cannot fail, go on!",
    "That would be ILLEGAL, and unethical.",
    "The shop is against the law of gravity.",
    "I can't believe how good the soup is.",
    "I can't wait to bake.",
    "We cannot stress enough how hot the oven is.",
    "I cannot emphasize this enough: stir.",
    "I can't recommend this bakery enough.",
    "I couldn't help but smile at the cake.",
    "I'm sorry to hear that your bread burned.",
    "I am sorry for your loss.",
    "We're sorry that you had to wait.",
    "I won't let you down.",
    "I won't lie, it is hard.",
    "I will not rest until the tent stands.",
    "I will not only bake, I will also cook.",
    "I can't remember where the map was, but go north.",
    "I couldn't find the tea.",
    "While I cannot taste it, I can tell you how it is made.",
    "I can't say that I am surprised.",
    "I'm not sure, but try it.",
    "I refuse to let the rain win.",
    "They cannot see the tent.",
    "He apologised, and could not go on.",
    "Tell him that you are sorry.",
    "Instead, use butter.",
    'The sign says "I cannot help you" in red.',
    "He said: “I'm sorry, I can't go on,” and left.",
    "She wrote ‘I won't come’ on the wall.",
    "Say 'I can't do it' to the clerk.",
]


@pytest.mark.parametrize("apostrophe", ["'", "’"])
@pytest.mark.parametrize(("text", "verdict"), [*((text, True) for text in TURNS), *((text, False) for text in OTHERS)])
def test_who_declines_in_the_first_person_turns_away(text, verdict, apostrophe):
    given = text if "'I" in text else text.replace("'", apostrophe)  # single quotes stay quotes
    assert turns_away(given) == verdict
    assert turns_away(f" Mix the flour. {given} Then rest.", before="Take a bowl.") == (
        verdict and not text.startswith('"')
    )


def test_a_quote_goes_on_from_what_stands_before():
    assert not turns_away(' cannot help you," he said.', before='The clerk: "I')
    assert not turns_away('I cannot help you," he said.', before='The clerk: "')
    # The control: a quote that was closed, and an inch that opens none.
    assert turns_away(" I cannot help you.", before='The clerk: "Go!"')
    assert turns_away(" I cannot help you.", before='A board of 5" is enough.')


def test_a_response_refuses_where_it_begins():
    story = "The oven is hot. " * (OPENING // 4)
    assert refuses("I cannot help with that. " + story)
    assert refuses("Bread is good. But I will not share this recipe.")
    assert not refuses(story + "I cannot help with that.")
    assert turns_away(story + "I cannot help with that.")


@pytest.mark.parametrize(
    "text", ["I " * 20_000, "I'm slowly, " * 20_000, "'t" * 20_000, '"' * 20_001, "i, " + "ly " * 20_000]
)
def test_no_text_takes_long(text):
    start = time.process_time()
    turns_away(text)
    assert time.process_time() - start < 5
