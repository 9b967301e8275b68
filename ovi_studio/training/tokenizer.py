"""Makes `nano`'s tokenizer: `python -m ovi_studio.training.tokenizer assets/nano/tokenizer`.

Byte-pair merges in SentencePiece's manner, learned from captions of the toy world and some plain English: the
toy world's words become single tokens, and the tags of the prompt grammar are. Bytes stand in for characters it
has not seen, so every text has an encoding. The same seed gives the same files. (UMT5's own kind, Unigram, was
tried: on so small a text it cuts common words into pieces, and no two trainings agree.)
"""

import argparse
import json
import random
import re
import string
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 1024
SPECIAL_TOKENS = (PAD, END, UNKNOWN) = ("<pad>", "</s>", "<unk>")  # ids 0, 1 and 2, as in T5
TAGS = ("<S>", "<E>", "<AUDCAP>", "<ENDAUDCAP>", "Audio:")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))

COLOURS = ("red", "green", "blue", "yellow", "gold", "purple", "pink", "white", "black", "brown", "gray", "cyan")
PLACES = (
    "in a meadow", "on a beach", "in a city street", "in a kitchen", "in a classroom", "in a forest", "in a desert",
    "on a snowy hill", "in outer space", "on a stage", "in a park", "in a library", "in an empty room", "at night",
)  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
VOICES = ("a low voice", "a high voice", "a calm voice", "a bright voice", "a quiet voice", "a loud voice")
PITCHES = range(200, 1601, 50)  # Hz


def toy_captions(count: int, rng: random.Random) -> list[str]:
    """Captions of the toy world in both dialects: faces that count, balls that bounce, lamps that blink."""
    makers = (_talking_face, _bouncing_ball, _blinking_lamp)
    captions = []
    for _ in range(count):
        scene, sound = rng.choice(makers)(rng)
        captions.append(rng.choice((f"{scene} <AUDCAP>{sound}<ENDAUDCAP>", f"{scene} Audio: {sound}")))
    return captions


def _talking_face(rng: random.Random) -> tuple[str, str]:
    words = " ".join(rng.choice(NUMBERS) for _ in range(rng.randint(1, 4)))
    face = f"{rng.choice(('A', 'A smiling', 'A round', 'A happy', 'A sad'))} {rng.choice(COLOURS)} cartoon face"
    hair = rng.choice(("", f" with {rng.choice(COLOURS)} hair", f" with {rng.choice(COLOURS)} eyes"))
    scene = f"{face}{hair} {rng.choice(PLACES)} says <S>{words}<E>."
    return scene, f"{rng.choice(VOICES)} saying {len(words.split())} numbers".capitalize() + "."


def _bouncing_ball(rng: random.Random) -> tuple[str, str]:
    bounces = rng.choice(("bounces once", "bounces twice", "bounces three times", "falls and bounces"))
    ball = f"A {rng.choice(('', 'big ', 'small '))}{rng.choice(COLOURS)} ball"
    sound = rng.choice(("A thud", "A dull thud", "A soft thud", "A heavy thud"))
    return f"{ball} {bounces} {rng.choice(PLACES)}.", f"{sound} each time the ball hits the floor."


def _blinking_lamp(rng: random.Random) -> tuple[str, str]:
    blinks = rng.choice(("blinks once", "blinks twice", "blinks three times", "blinks quickly", "blinks slowly"))
    tone = rng.choice(("tone", "beep", "pure tone"))
    scene = f"A {rng.choice(COLOURS)} lamp {blinks} {rng.choice(PLACES)}."
    return scene, f"A {tone} of {rng.choice(PITCHES)} Hz while the lamp is on."


ENGLISH = """
A woman walks her dog along the beach while the sun goes down behind the sea.
An old man sits at a wooden table and looks straight into the camera before he speaks.
Two children laugh and run through the tall grass with a kite above their heads.
The rain is falling on the roof, and somewhere in the distance thunder rolls.
A singer stands alone on the stage, her eyes closed, with soft piano music behind her.
He opens the door slowly, turns around and says that it is time to go home.
Cars pass by on the wet street; their lights shine in the windows of the shops.
A young chef cuts fresh bread in a warm kitchen and smiles at his friend.
The camera moves closer to her face until only her eyes can be seen.
A black cat jumps from the chair onto the window and watches the birds outside.
They talk quietly about the weather, the train and what they would like to eat.
The crowd cheers and claps as the runner crosses the line with both hands in the air.
Waves break against the rocks and a cold wind blows over the water.
A teacher writes a word on the board and asks the class to read it aloud.
Footsteps echo in the long hall, then a clock strikes and everything is silent.
A robot with a metal body lifts a heavy box and puts it next to the wall.
Snow covers the mountains, the trees and the small houses in the valley.
She picks up the phone, listens for a moment and answers with a nervous voice.
A man in a dark suit and a red tie gives a speech in front of many people.
The baby sleeps in the arms of its mother, who hums a gentle song.
Fire burns in the fireplace with a crackling sound, and the light moves on their faces.
A girl with long brown hair and glasses plays the guitar under a big tree.
Do you know where we are? I think we have been here before, she whispers.
Please wait for me, because I cannot walk as fast as you do, he shouts.
The dog barks loudly, an engine starts, and a bell rings from the old church.
Close shot of hands on a keyboard; the keys click with a steady rhythm.
A wide view of a green field in the early morning, with mist over the river.
Birds sing, leaves move in the wind and water flows over the stones.
""".strip().splitlines()


def corpus(seed: int) -> list[str]:
    """What the merges are learned from: mostly the toy world, and without the tags, which are never cut."""
    captions = toy_captions(2000, random.Random(seed))  # noqa: S311 (not a secret)
    return [part.strip() for text in captions + ENGLISH * 10 for part in re.split("|".join(TAGS), text)]


def train(seed: int = 0) -> PreTrainedTokenizerFast:
    """The tokenizer, trained from nothing within a second."""
    learner = _with_model(models.BPE())
    alphabet = string.ascii_letters + string.digits + string.punctuation
    reserved = (*SPECIAL_TOKENS, *TAGS, *BYTES)
    pieces = VOCABULARY_SIZE - len(reserved)
    trainer = BpeTrainer(vocab_size=pieces, initial_alphabet=list(alphabet), show_progress=False)
    learner.train_from_iterator(corpus(seed), trainer)

    # The trainer knows no bytes and would number the tags last: lay the vocabulary out anew.
    learned = json.loads(learner.to_str())["model"]
    tokens = [*reserved, *sorted(learned["vocab"], key=learned["vocab"].get)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [(left, right) for left, right in learned["merges"]]
    model = models.BPE(vocabulary, merges, unk_token=UNKNOWN, byte_fallback=True)
    return PreTrainedTokenizerFast(tokenizer_object=_with_model(model), pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def _with_model(model: models.Model) -> Tokenizer:
    """`model` with UMT5's surroundings: NFKC, spaces as ▁, one before every first word, and an end token."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, SPECIAL_TOKENS.index(END))]
    )
    tokenizer.add_tokens([AddedToken(tag, lstrip=True, rstrip=True, normalized=False) for tag in TAGS])
    return tokenizer


def main() -> None:
    """Writes the tokenizer into the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Make nano's tokenizer.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.seed).save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
