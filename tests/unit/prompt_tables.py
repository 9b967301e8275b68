# ruff: noqa: E501  (a prompt is read whole)
"""Prompts written for the linter's tests: 45 with known faults, 35 good ones in both dialects."""

from typing import NamedTuple

from ovi_studio.lint import Code
from ovi_studio.prompt import Dialect

A, P = Dialect.AUDCAP, Dialect.AUDIO_PREFIX
FIVE, TEN = 5.04, 10.04  # seconds


class Faulty(NamedTuple):
    """A prompt, every code it must be given, and its text after repair (None: nothing can be repaired)."""

    dialect: Dialect
    seconds: float
    text: str
    codes: set[Code]
    repaired: str | None


FAULTY = {
    # -- tags that are not closed
    "speech never closed before the caption": Faulty(
        A,
        FIVE,
        "A baker leans over the counter and says <S>Try the rye today <AUDCAP>Shop bell, low chatter<ENDAUDCAP>",
        {Code.UNCLOSED_TAG},
        "A baker leans over the counter and says <S>Try the rye today<E> <AUDCAP>Shop bell, low chatter<ENDAUDCAP>",
    ),
    "speech never closed, narration follows": Faulty(
        P,
        FIVE,
        "A goalkeeper points upfield. <S>Push up, push up! She claps her gloves. Audio: Crowd roar, shrill voice.",
        {Code.UNCLOSED_TAG},
        "A goalkeeper points upfield. <S>Push up, push up!<E> She claps her gloves. Audio: Crowd roar, shrill voice.",
    ),
    "caption never closed": Faulty(
        A,
        FIVE,
        "Fog rolls over a harbour at dawn. <AUDCAP>Distant foghorn, gulls",
        {Code.UNCLOSED_TAG},
        "Fog rolls over a harbour at dawn. <AUDCAP>Distant foghorn, gulls<ENDAUDCAP>",
    ),
    "first of two speeches never closed": Faulty(
        A,
        FIVE,
        "The clerk says <S>Next, please. The old man answers <S>Finally!<E>",
        {Code.UNCLOSED_TAG},
        "The clerk says <S>Next, please.<E> The old man answers <S>Finally!<E>",
    ),
    "opener with nothing behind it": Faulty(
        P, FIVE, "A cyclist brakes hard and shouts <S>", {Code.UNCLOSED_TAG}, "A cyclist brakes hard and shouts "
    ),
    "opened twice instead of closed": Faulty(
        A,
        FIVE,
        "The nurse whispers <S>You can go in now<S> and opens the door. <AUDCAP>Soft voice, corridor<ENDAUDCAP>",
        {Code.MISMATCHED_TAG},
        "The nurse whispers <S>You can go in now<E> and opens the door. <AUDCAP>Soft voice, corridor<ENDAUDCAP>",
    ),
    "caption closed like speech": Faulty(
        A,
        FIVE,
        "A kettle boils on a camp stove. <AUDCAP>Whistling kettle, crickets<E>",
        {Code.MISMATCHED_TAG},
        "A kettle boils on a camp stove. <AUDCAP>Whistling kettle, crickets<ENDAUDCAP>",
    ),
    "speech closed like a caption": Faulty(
        P,
        TEN,
        "A pilot turns round. <S>We land in ten minutes<ENDAUDCAP> Audio: Cockpit hum.",
        {Code.MISMATCHED_TAG},
        "A pilot turns round. <S>We land in ten minutes<E> Audio: Cockpit hum.",
    ),
    # -- closers without openers
    "closed twice": Faulty(
        P,
        FIVE,
        "A vet smiles. <S>Good girl<E><E> The dog wags its tail.",
        {Code.STRAY_TAG},
        "A vet smiles. <S>Good girl<E> The dog wags its tail.",
    ),
    "closer whose opener is missing after a verb": Faulty(
        A,
        FIVE,
        "The conductor shouts, All aboard<E> and waves a green flag. <AUDCAP>Steam, whistle<ENDAUDCAP>",
        {Code.STRAY_TAG},
        "The conductor shouts, <S>All aboard<E> and waves a green flag. <AUDCAP>Steam, whistle<ENDAUDCAP>",
    ),
    "caption closer without opener": Faulty(
        A,
        FIVE,
        "Two foxes cross a snowy road. Crisp footsteps, faint wind<ENDAUDCAP>",
        {Code.STRAY_TAG},
        "Two foxes cross a snowy road. <AUDCAP>Crisp footsteps, faint wind<ENDAUDCAP>",
    ),
    # -- nesting
    "speech inside speech": Faulty(
        A,
        FIVE,
        "A judge says <S>The court <S>will now<E> rise<E>.",
        {Code.NESTED_TAG},
        "A judge says <S>The court will now rise<E>.",
    ),
    "opener written twice": Faulty(
        P,
        FIVE,
        "A diver nods. <S><S>Ready when you are<E>",
        {Code.NESTED_TAG},
        "A diver nods. <S>Ready when you are<E>",
    ),
    "caption inside speech": Faulty(
        A,
        FIVE,
        "A farmer says <S>Rain at last <AUDCAP>Steady rain on tin<ENDAUDCAP><E>",
        {Code.NESTED_TAG},
        "A farmer says <S>Rain at last<E> <AUDCAP>Steady rain on tin<ENDAUDCAP>",
    ),
    # -- tags misspelt
    "lower case and slash": Faulty(
        A,
        FIVE,
        "A clown bows. <s>Thank you, thank you!</s> <audcap>Applause<endaudcap>",
        {Code.MALFORMED_TAG},
        "A clown bows. <S>Thank you, thank you!<E> <AUDCAP>Applause<ENDAUDCAP>",
    ),
    "speech closed the HTML way": Faulty(
        P,
        FIVE,
        "The guide whispers <S>Don't move</S> and crouches. Audio: Whisper, leaves rustling.",
        {Code.MALFORMED_TAG},
        "The guide whispers <S>Don't move<E> and crouches. Audio: Whisper, leaves rustling.",
    ),
    "caption tags misspelt": Faulty(
        A,
        FIVE,
        "Waves break on black rocks. <AUDCAPS>Surf, wind gusts</AUDCAP>",
        {Code.MALFORMED_TAG},
        "Waves break on black rocks. <AUDCAP>Surf, wind gusts<ENDAUDCAP>",
    ),
    "square brackets": Faulty(
        A,
        FIVE,
        "A boy tugs his mother's sleeve: [S]Can we keep it?[E] <AUDCAP>Puppy whining<ENDAUDCAP>",
        {Code.MALFORMED_TAG},
        "A boy tugs his mother's sleeve: <S>Can we keep it?<E> <AUDCAP>Puppy whining<ENDAUDCAP>",
    ),
    "caption tags without brackets": Faulty(
        A,
        FIVE,
        "A typewriter on a desk by the window. AUDCAP clacking keys, a bell ENDAUDCAP",
        {Code.MALFORMED_TAG},
        "A typewriter on a desk by the window. <AUDCAP> clacking keys, a bell <ENDAUDCAP>",
    ),
    "closing bracket lost": Faulty(
        A,
        FIVE,
        "A waiter asks <S>Still or sparkling?<E <AUDCAP>Cutlery, murmurs<ENDAUDCAP",
        {Code.MALFORMED_TAG},
        "A waiter asks <S>Still or sparkling?<E> <AUDCAP>Cutlery, murmurs<ENDAUDCAP>",
    ),
    "opening bracket lost": Faulty(
        P,
        FIVE,
        "A surgeon holds out a hand. S>Scalpel, please.E> Audio: Steady beeping.",
        {Code.MALFORMED_TAG},
        "A surgeon holds out a hand. <S>Scalpel, please.<E> Audio: Steady beeping.",
    ),
    "tags escaped for a web page": Faulty(
        A,
        FIVE,
        "The ghost moans &lt;S&gt;Leave this house&lt;E&gt;",
        {Code.MALFORMED_TAG},
        "The ghost moans <S>Leave this house<E>",
    ),
    "prefix in lower case": Faulty(
        P,
        FIVE,
        "A train crosses a viaduct.\naudio: Rhythmic clatter, a far whistle.",
        {Code.MALFORMED_TAG},
        "A train crosses a viaduct.\nAudio: Rhythmic clatter, a far whistle.",
    ),
    "invented words for the tags": Faulty(
        A,
        FIVE,
        "An usher says <SPEECH>Row seven, to your left<END> quietly.",
        {Code.MALFORMED_TAG},
        "An usher says <S>Row seven, to your left<E> quietly.",
    ),
    # -- tags that no model knows
    "stage direction inside speech": Faulty(
        A,
        FIVE,
        "An actress grins. <S>You really <laughs> thought so?<E> <AUDCAP>Female voice<ENDAUDCAP>",
        {Code.UNKNOWN_TAG},
        "An actress grins. <S>You really thought so?<E> <AUDCAP>Female voice<ENDAUDCAP>",
    ),
    "markup": Faulty(
        P,
        FIVE,
        "A <b>red</b> balloon rises over rooftops.<br> Audio: Light wind.",
        {Code.UNKNOWN_TAG},
        "A red balloon rises over rooftops. Audio: Light wind.",
    ),
    # -- empty things
    "empty prompt": Faulty(A, FIVE, " \n\t ", {Code.EMPTY_PROMPT}, None),
    "no speech between the tags": Faulty(
        A,
        FIVE,
        "A mime opens his mouth. <S> <E> The crowd waits. <AUDCAP>Hushed square<ENDAUDCAP>",
        {Code.EMPTY_SPEECH},
        "A mime opens his mouth. The crowd waits. <AUDCAP>Hushed square<ENDAUDCAP>",
    ),
    "caption prefix with nothing behind it": Faulty(
        P, FIVE, "A snail on a wet leaf. Audio:", {Code.EMPTY_CAPTION}, "A snail on a wet leaf. "
    ),
    # -- speech outside the tags
    "quoted after a verb": Faulty(
        A,
        FIVE,
        'A ranger raises his hand and says "stay on the path". <AUDCAP>Birdsong<ENDAUDCAP>',
        {Code.QUOTED_SPEECH},
        "A ranger raises his hand and says <S>stay on the path<E>. <AUDCAP>Birdsong<ENDAUDCAP>",
    ),
    "quoted before a verb, curly": Faulty(
        P,
        FIVE,
        "“I knew you'd come back,” she whispers, and shuts the book. Audio: Hushed female voice.",
        {Code.QUOTED_SPEECH},
        "<S>I knew you'd come back,<E> she whispers, and shuts the book. Audio: Hushed female voice.",
    ),
    "single quotes and an apostrophe": Faulty(
        P,
        FIVE,
        "The sailors' cook yells, 'Soup's ready, lads!' from the galley.",
        {Code.QUOTED_SPEECH},
        "The sailors' cook yells, <S>Soup's ready, lads!<E> from the galley.",
    ),
    "a sentence in quotes, no verb": Faulty(
        A,
        FIVE,
        'An astronaut lifts her visor. "There is something moving out there." <AUDCAP>Radio crackle<ENDAUDCAP>',
        {Code.QUOTED_SPEECH},
        "An astronaut lifts her visor. <S>There is something moving out there.<E> <AUDCAP>Radio crackle<ENDAUDCAP>",
    ),
    "a second speaker left in quotes, in German": Faulty(
        P,
        TEN,
        "Ein Mädchen ruft <S>Papa, schau mal!<E> und der Vater antwortet: „Ich komme gleich.“ Audio: Garten, Vögel.",
        {Code.QUOTED_SPEECH},
        "Ein Mädchen ruft <S>Papa, schau mal!<E> und der Vater antwortet: <S>Ich komme gleich.<E> Audio: Garten, Vögel.",
    ),
    "quoted in Chinese": Faulty(
        A,
        FIVE,
        "一位老人微笑着说：“今天天气真好。”<AUDCAP>鸟鸣<ENDAUDCAP>",
        {Code.QUOTED_SPEECH},
        "一位老人微笑着说：<S>今天天气真好。<E><AUDCAP>鸟鸣<ENDAUDCAP>",
    ),
    # -- captions
    "the prefix where the tags are wanted": Faulty(
        A,
        FIVE,
        "A potter shapes a bowl. Audio: Spinning wheel, wet clay.",
        {Code.OTHER_DIALECT},
        "A potter shapes a bowl. <AUDCAP>Spinning wheel, wet clay.<ENDAUDCAP>",
    ),
    "the tags where the prefix is wanted": Faulty(
        P,
        TEN,
        "A cellist plays alone. <S>One more time<E> <AUDCAP>Warm cello, low male voice<ENDAUDCAP>",
        {Code.OTHER_DIALECT},
        "A cellist plays alone. <S>One more time<E> Audio: Warm cello, low male voice",
    ),
    "the scene goes on after the caption": Faulty(
        A,
        FIVE,
        "A cat sits on a sill. <AUDCAP>Purring<ENDAUDCAP> It jumps down and <S>runs away<E>.",
        {Code.TEXT_AFTER_CAPTION},
        "A cat sits on a sill. It jumps down and <S>runs away<E>. <AUDCAP>Purring<ENDAUDCAP>",
    ),
    "a paragraph after the prefix caption": Faulty(
        P,
        TEN,
        "A tent glows at night. Audio: Crackling fire.\n\nThe camera pulls back to show the whole valley.",
        {Code.TEXT_AFTER_CAPTION},
        "A tent glows at night. The camera pulls back to show the whole valley. Audio: Crackling fire.",
    ),
    "two captions": Faulty(
        A,
        FIVE,
        "<AUDCAP>Heavy rain<ENDAUDCAP> A taxi stops at the kerb. <AUDCAP>Squeaking brakes<ENDAUDCAP>",
        {Code.SEVERAL_CAPTIONS},
        "A taxi stops at the kerb. <AUDCAP>Heavy rain. Squeaking brakes<ENDAUDCAP>",
    ),
    "speech inside the caption": Faulty(
        A,
        FIVE,
        "A priest on a hill. <AUDCAP>A tired voice <S>It is finished<E> over bells<ENDAUDCAP>",
        {Code.SPEECH_IN_CAPTION},
        "A priest on a hill. <S>It is finished<E> <AUDCAP>A tired voice over bells<ENDAUDCAP>",
    ),
    "speech after the prefix": Faulty(
        P,
        FIVE,
        "A boxer sits in his corner. Audio: Crowd noise, gasping breath. <S>One more round<E>",
        {Code.SPEECH_IN_CAPTION},
        "A boxer sits in his corner. <S>One more round<E> Audio: Crowd noise, gasping breath.",
    ),
    # -- too much to say
    "thirty words in five seconds": Faulty(
        P,
        FIVE,
        "A salesman talks fast. <S>Ladies and gentlemen, this remarkable little machine peels, slices, grates, mashes and whisks, folds away in a drawer, washes in a minute and costs less than lunch for two.<E> Audio: Male voice.",
        {Code.TOO_MANY_WORDS},
        None,
    ),
    "seventy characters in five seconds, Japanese": Faulty(
        A,
        FIVE,
        "駅員が話す。<S>まもなく二番線に東京行きの特急列車が参ります。危ないですから黄色い線の内側までお下がりください。お乗りの際は足元にご注意ください。<E>",
        {Code.TOO_MANY_WORDS},
        None,
    ),
    # -- more than the model reads
    "a scene of four hundred words, and then the sound": Faulty(
        P, FIVE, "A long road through wide fields. " * 66 + "Audio: wind", {Code.TOO_LONG}, None
    ),
    "a scene of seven hundred characters, Chinese": Faulty(
        A, FIVE, "一条长路穿过广阔的田野。" * 60, {Code.TOO_LONG}, None
    ),
    # -- several at once
    "three faults at once": Faulty(
        P,
        FIVE,
        '<AUDCAP>Door creaks<ENDAUDCAP> A detective enters. <s>Nobody leaves<E> He adds, "Not even you."',
        {Code.OTHER_DIALECT, Code.TEXT_AFTER_CAPTION, Code.MALFORMED_TAG, Code.QUOTED_SPEECH},
        "A detective enters. <S>Nobody leaves<E> He adds, <S>Not even you.<E> Audio: Door creaks",
    ),
}

GOOD: tuple[tuple[Dialect, float, str], ...] = (
    # -- the tagged dialect
    (A, FIVE, "A lighthouse keeper climbs a spiral stair, lantern in hand. <AUDCAP>Footsteps on iron<ENDAUDCAP>"),
    (
        A,
        FIVE,
        "A chef tastes the sauce, frowns and says <S>It needs more salt.<E> <AUDCAP>Clear male voice, sizzling pan, busy kitchen<ENDAUDCAP>",
    ),
    (
        A,
        FIVE,
        "Two girls share headphones on a bus. The first asks <S>Do you like it?<E>. The second nods: <S>It's brilliant!<E> <AUDCAP>Young female voices, engine hum<ENDAUDCAP>",
    ),
    (A, FIVE, 'A neon sign reading "OPEN ALL NIGHT" buzzes above a diner. <AUDCAP>Electric buzz, rain<ENDAUDCAP>'),
    (A, FIVE, "A 6'2\" climber hauls a 24\" rope bag up the dog's-leg crack. <AUDCAP>Wind, panting<ENDAUDCAP>"),
    (
        A,
        FIVE,
        "The boys' team isn't ready; the coach's whistle hangs from the '90s trophy. <AUDCAP>Gym echo<ENDAUDCAP>",
    ),
    (
        A,
        FIVE,
        'A woman holding a sign that says "We want answers!" marches past. She shouts <S>No more lies!<E> <AUDCAP>Chanting crowd, drums<ENDAUDCAP>',
    ),
    (
        A,
        FIVE,
        'He is reading "The Old Man and the Sea" on a jetty; gulls wheel. <AUDCAP>Gulls, lapping water<ENDAUDCAP>',
    ),
    (A, FIVE, "Una abuela sonríe y dice <S>¡Qué alegría verte!<E> <AUDCAP>Voz de mujer mayor, cocina<ENDAUDCAP>"),
    (A, FIVE, "Женщина у окна говорит <S>Снег пошёл.<E> <AUDCAP>Тихий женский голос, часы<ENDAUDCAP>"),
    (
        A,
        FIVE,
        "看板に「営業中」と書かれた店の前で、店主が<S>いらっしゃいませ。<E>と言う。<AUDCAP>明るい男性の声<ENDAUDCAP>",
    ),
    (
        A,
        FIVE,
        "Close-up of a watchmaker (S. Ek) at work; the 'tick' slows. <AUDCAP>Ticking, slower and slower<ENDAUDCAP>.",
    ),
    (
        A,
        FIVE,
        "Wide shot.\n\nA herd of elephants crosses a river at sunset.\nThe smallest one slips.\n\n<AUDCAP>Splashing,\nlow rumbles<ENDAUDCAP>\n",
    ),
    (
        A,
        FIVE,
        "A robot <3 of steel tilts its head. <S>Hello... friend?<E> <AUDCAP>Synthetic voice, servo whirr<ENDAUDCAP>",
    ),
    (A, FIVE, "A silent film look: a tramp twirls his cane & bows."),
    (
        A,
        FIVE,
        "The so-called \"quiet car\" of a train: a man in a 'World's Best Dad' cap snores. <AUDCAP>Snoring, rails<ENDAUDCAP>",
    ),
    # -- the prefix dialect
    (P, FIVE, "Macro shot of frost growing over a window pane. Audio: Faint crackling, distant wind."),
    (
        P,
        TEN,
        "A librarian looks over her glasses and whispers <S>You have had that book since nineteen ninety-four.<E> The student gulps. <S>I can explain.<E> Audio: Hushed female voice, nervous young male voice, a clock.",
    ),
    (P, TEN, "A street drummer plays on buckets while people film.\nAudio: Fast drumming, cheering, city traffic."),
    (P, FIVE, 'The headline "MARKETS CRASH" spins toward us, 1930s style. Audio: Dramatic brass, a printing press.'),
    (P, FIVE, 'A girl in a "Save the Whales" T-shirt blows a bubble. <S>Told you so.<E> Audio: Teen voice, a pop.'),
    (P, TEN, "Un vieil homme allume sa pipe. <S>C'était en juillet, je crois.<E> Audio: voix grave, feu de bois."),
    (P, FIVE, "Eine Lehrerin ruft <S>Ruhe bitte!<E> und klopft ans Pult. Audio: Strenge Frauenstimme, Klassenzimmer."),
    (P, FIVE, "一个孩子指着写着“禁止入内”的牌子问<S>为什么？<E> Audio: 清脆的童声，风声。"),
    (P, TEN, "한 남자가 우산을 펴며 말한다. <S>비가 올 줄 알았어.<E> Audio: 낮은 남자 목소리, 빗소리."),
    (
        P,
        FIVE,
        "Drone view of terraced fields -> a farmer waves; caption-free, 16:9, f/2.8. Audio: Breeze, a far cowbell.",
    ),
    (P, FIVE, 'A jazz trio starts "Autumn Leaves" in a smoky bar. Audio: Piano, upright bass, brushes on a snare.'),
    (
        P,
        TEN,
        'A toddler presses the button marked "Do not press!" and gasps <S>Uh-oh!<E> Audio: Click, alarm, child\'s voice.',
    ),
    (
        P,
        TEN,
        "ANNA, 30s, at the sink. TOM enters. ANNA: <S>You're late again.<E> TOM: <S>The bus didn't come.<E>\nAudio: Two adult voices, running water, tense silence.",
    ),
    (P, FIVE, 'The wall of an alley, tagged "ZEPHYR" in silver; a kid\'s skateboard rolls by. Audio: Urethane wheels.'),
    (
        P,
        FIVE,
        "A news anchor taps her papers: <S>Good evening. Here is what we know.<E> Audio: Studio, clear alto voice.",
    ),
    (P, FIVE, "A violin."),
    (P, FIVE, "Rain on a tram stop. <S>Is this seat taken?<E> Audio: Male voice, rain.\nA tram bell, then brakes."),
    (A, FIVE, 'A speech bubble pops up: "POW!" in a comic panel. <AUDCAP>Punch, brass stab<ENDAUDCAP>'),
    (A, FIVE, 'She types "I am on my way home!" and sets the phone down. <AUDCAP>Key taps, a sigh<ENDAUDCAP>'),
)
