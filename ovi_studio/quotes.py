"""When quoted words in plain prose are meant to be spoken, and who speaks: judgements from word lists.

Nothing the model sees is changed by them. A sign, a title or a name in quotes is left alone, and where there is
doubt nothing is reported.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Quote:
    """A quotation: `start` and `end` around the marks, `inner_start` and `inner_end` around the words."""

    start: int
    inner_start: int
    inner_end: int
    end: int


_LONGEST_QUOTE = 600  # characters; guessed: a minute of speech
_CONTEXT = 200  # characters looked at on either side of a quotation; guessed: a long sentence

_CLOSER = {
    mark: re.compile(rf"[{closers}]" if mark == "«" else rf"(?<=\S)[{closers}]")
    for mark, closers in {
        "“": '”"',
        "”": "”",
        "„": '“”"',
        "«": "»",
        "»": "«",
        "「": "」",
        "『": "』",
        '"': '"',
    }.items()
}
_SINGLE_CLOSER = re.compile(r"(?<=\S)['’](?!\w)")  # any other is an apostrophe
_SINGLE_CLOSER_AFTER_STOP = re.compile(r"(?<=[.,!?…])['’](?!\w)")  # surely not a plural possessive
_OPENER = re.compile(r"(?<!\w)[\"'‘](?=[^\s\"])|[“„«「『]|(?<!\w)»(?=\w)|(?<!\w)”(?=\w)")

# The word lists below: `_` is a space, `*` any ending, `+` a plural, `~` the forms of a regular verb.


def _any_of(words: str) -> str:
    """A regular expression for any of `words`."""
    return "|".join(_forms(word.replace("_", " ")) for word in words.split())


def _forms(word: str) -> str:
    stem, last = word[:-1], word[-2:-1]
    if word.endswith("*"):
        return stem + r"\w*"
    if word.endswith("+"):
        return stem + "(?:e?s)?"
    if not word.endswith("~"):
        return word
    if last == "e":
        return stem[:-1] + "(?:e[sd]?|ing)"
    if last == "y":
        return stem[:-1] + "(?:y|ies|ied|ying)"
    return stem + f"(?:e?s|{last}?ed|{last}?ing)?"


# Verbs that make a quotation speech wherever it stands near them.
_STRONG = _any_of("""
    say says said saying ask~ whisper~ shout~ yell~ scream~ reply~ answer~ murmur~ mutter~ mumble~ exclaim~ announce~
    declare~ tell tells told telling respond~ speak speaks spoke speaking greet~ plead~ gasp~ cry~ call~_out call~_over
    calls_out calls_over calling_out called_out calls_back stammer~ stutter~ bellow~ growl~ hiss~ shriek~ chant~
    reads?_out reads?_aloud reading_aloud narrate~ recite~ utter~ blurt~ holler~ sing sings sang singing
    dice dices dicen dijo diciendo pregunta grita susurra exclama responde diz dizem disse pergunta sussurra
    dit disent demande crie murmure chuchote répond s['’]exclame
    sagt sagen sagte fragt ruft schreit flüstert antwortet erklärt dicono chiede grida risponde esclama
    zegt vraagt roept fluistert antwoordt säger frågar ropar viskar mówi pyta krzyczy szepcze odpowiada diyor
    говор* сказал* спрашива* спросил* кричит крикнул* шепчет прошептал* отвеча* ответил* восклица* произнос*
    каже питає λέει ρωτάει φωνάζει
""")
# Verbs, and a few nouns, that do so only with a pause before the quotation or a whole sentence inside it.
_WEAK = _any_of("""
    add~ continue~ laugh~ sigh~ sob~ cheer~ snap~ roar~ bark~ warn~ insist~ order~ demand~ joke~ explain~ remark~
    comment~ repeat~ state~ beg~ admit~ boast~ promise~ proclaim~ chuckle~ giggle~ sneer~ groan~ moan~ croak~ purr~
    interrupt~ command~ call~ goes went squawk~ quip~ drawl~ rasp~ wonder~ observe~ notes noted begin begins began
    speech(?!_bubble) line dialogue voice
""")
_SAYS = re.compile(rf"(?<![\w-])(?:(?P<strong>{_STRONG})|(?P<weak>{_WEAK}))(?!\w)", re.IGNORECASE)
_SAYS_AFTER = re.compile(
    r"[\s,.–—-]{0,3}(?P<who>(?!(?:and|as|while|but|then|is|are)\b)(?:(?:Mr|Mrs|Ms|Dr)\.\s|[\w'’-]+\s+){0,4}?)"
    rf"(?:{_STRONG}|{_WEAK})(?!\w)",
    re.IGNORECASE,
)

# What is written, and how it is said to be; words quoted near these are to be seen, not heard.
_SIGNS = _any_of("""
    sign+ signage signposts? signboards? billboard+ banner+ poster+ placard+ label~ plaque+ neon screen+ headline+
    caption+ captioned subtitle+ subtitled title+ titled entitled called named nicknamed dubbed known_as so-called
    write+ wrote writing written print~ painted carved engrave~ embroidered inscribed inscription+ stamped spell~ spelt
    marked tagged bears bearing read reads reading text~ logo+ letter~ graffiti tattoo~ marquee+ nameplate+ sticker+
    chalkboard+ blackboard+ whiteboard+ display~ type~ send+ sent message+ notification+ scoreboard+ bubble+ ad+
    flyer+ menu+ slogan+ motto+ watermark+ gravestone+ tombstone+ headstone+
    cartel cartel+ letrero+ titulad[oa]s? llamad[oa]s? escrit[oa]s? panneaux? enseigne+ affiche+ intitul* pancarte+
    écrite?s? schild schilder plakat* steht titel namens aufschrift cartell[oi] insegn[ae] intitolat[oa] scritt[ae]
    placa+ cartaz+ letreiro+ вывеск* табличк* надпис* названи* написан* плакат*
""")
# What may bear writing or have a title, but is often just there.
_THINGS = _any_of("""
    t-?shirt+ tee shirt+ sweatshirt+ hoodie+ sweater+ jumper+ jersey+ jacket+ apron+ sash cap+ hat+ mug+ cup+ monitor+
    newspaper+ note+ card+ book+ notebook+ page+ badge+ board+ storefront+ awning+ license_plate+ cover+ song+ film+
    movie+ novel+ play~ album+ poem+ track+ tune painting+ magazine+ show+ series brand+ app+ game+ website+ folder+
    file+ button+ key+ flag+ cake+ icing ticket+ package+ packet+ box+ bottle+ envelope+ leaflet+ brochure+ receipt+
    ribbon+ mat+ doormat+ window+ door+ wall+ truck+ van+ jar+ tin+ can crate+ keychain+ wristband+ certificate+
    invitation+ dashboard+ balloon+ hum~ watch~ perform~ style_of
""")
_CJK_WRITTEN = (
    "写着|寫著|写有|招牌|标牌|標牌|标题|標題|字样|字樣|名为|題名|题为|看板|書かれ|ポスター|간판|제목|적힌|쓰인|쓰여"
)
_SIGN = re.compile(rf"(?<!\w)(?:{_SIGNS})(?!\w)|{_CJK_WRITTEN}", re.IGNORECASE)
_WRITTEN = re.compile(rf"(?<!\w)(?:{_SIGNS}|{_THINGS})(?!\w)|{_CJK_WRITTEN}", re.IGNORECASE)
_SPEAKERS = _any_of("""
    woman women man men boy+ girl+ child children kid+ he she they i we you who lady ladies guy+ person+ people voice+
    narrator+ narration announcer+ host+ presenter+ reporter+ anchor+ teacher+ mother father mom mum dad son+ daughter+
    king+ queen+ soldier+ captain+ robot+ alien+ wizard+ witch+ character+ actor+ actress singer+ speaker+ officer+
    doctor+ nurse+ chef+ barista+ waiter+ waitress player+ coach crowd couple friend+ brother+ sister+ grand* student+
    scientist+ detective+ pilot+ astronaut+ customer+ clerk+ shopkeeper+ parrot+ dialogue speech line voice-?over
    v\\.?o lyrics? mujer hombre niñ[oa] femme homme frau mann donna uomo mulher homem
    женщин* мужчин* девушк* мальчик* девочк* он она
""")
_SPEAKER = re.compile(rf"(?<!\w)(?:{_SPEAKERS})(?!\w)", re.IGNORECASE)
_ASIDE = re.compile(
    r"\s*(?:\w+ing|in|on|at|with|under|near|by|beside|behind|above|below|next|inside|outside|over|between|from)\b",
    re.IGNORECASE,
)
_DETERMINER = re.compile(
    r"(?<!\w)(?:the|an?|this|that|these|those|his|her|their|its|my|your|our|of|for|about|in|on|at|by|from|with|to|like"
    r"|as|and|or"
    r"|be|been|being|is|are|was|le|la|les|un|une|der|die|das|ein|eine|el|los|las|una|il|lo|o|os)\s*$",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[,;:(–—]|(?<!\w)(?:as|while|and|when|then|but|before|after)(?!\w)", re.IGNORECASE)
_SENTENCE_BREAK = re.compile(r"[.!?…][\"”»’']*\s|[。！？\n]|[.!?…]$")
_CJK_SAYS_BEFORE = re.compile(
    r"(?:(?:说|說|问|問|喊|回答|低语|喃喃)道?|叫道|大叫|表示|叫ぶ|言う"
    r"|말한다|말하며|말했다|외친다|외치며|속삭인다|묻는다|대답한다)[：:，,、\s]*$"
)
_CJK_SAYS_AFTER = re.compile(
    r"\s*(?:と[、\s]?[^。、「」]{0,8}?(?:言|叫|ささや|囁|尋|聞|つぶや|呟|話|答|呼|語|歌|怒鳴|告げ)"
    r"|이?라고\s*(?!적|쓰|써)|하고\s*(?:말|외)"
    r"|[，,]?\s*\S{0,4}?(?:说|說|问|問|喊)道?[。，,])"
)
_LEAD_IN = re.compile(r"[^.!?,:\n]{0,60}?[,:：，]\s*[\"“]?(?=\S)")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_PAUSES = (",", ":", "：", "，", "—", "–", "-")
_SENTENCE_END = re.compile(r"[.!?…。！？—–-]+$")


def quoted_speech(text: str, start: int, end: int) -> Iterator[Quote]:
    """Quotations in `text[start:end]`, which must be plain prose, that read as something to be spoken.

    A sign, a title or a name in quotes is left alone: where there is doubt, nothing is reported.
    """
    position = start
    while opener := _OPENER.search(text, position, end):
        quote = _quotation(text, opener.start(), end)
        position = quote.end if quote else opener.end()
        if quote and _is_speech(text, quote, start, end):
            yield quote


def _quotation(text: str, start: int, end: int) -> Quote | None:
    """The quotation opened at `start`, if it is closed soon enough and in the same paragraph."""
    limit = min(end, start + _LONGEST_QUOTE)
    blank_line = text.find("\n\n", start, limit)
    limit = blank_line if blank_line >= 0 else limit
    closer = _CLOSER.get(text[start])
    if closer:
        close = closer.search(text, start + 2, limit)
    else:
        close = _SINGLE_CLOSER_AFTER_STOP.search(text, start + 2, limit)
        close = close or _SINGLE_CLOSER.search(text, start + 2, limit)
    if not close:
        return None
    words = text[start + 1 : close.start()]
    inner_start = close.start() - len(words.lstrip())
    return Quote(start, inner_start, inner_start + len(words.strip()), close.end())


def _is_speech(text: str, quote: Quote, start: int, end: int) -> bool:
    words = text[quote.inner_start : quote.inner_end].strip()
    if not any(character.isalpha() for character in words):
        return False
    before = text[max(start, quote.start - _CONTEXT) : quote.start]
    breaks = [match.end() for match in _SENTENCE_BREAK.finditer(before)]
    sentence = before[breaks[-1] :] if breaks else before
    after = text[quote.end : min(end, quote.end + _CONTEXT // 2)]
    if _CJK_SAYS_BEFORE.search(sentence) or _CJK_SAYS_AFTER.match(after):
        return True
    return (
        _introduced(sentence, words)
        or _attributed(sentence, words, after)
        or _stands_alone(before, sentence, words, after)
    )


def _introduced(sentence: str, words: str) -> bool:
    """`A man says, "…"`: a verb of speaking before the quotation, with a subject that can speak."""
    strong = weak = None
    for verb in _SAYS.finditer(sentence):
        strong, weak = (verb, weak) if verb["strong"] else (strong, verb)
    return any(_introduces(verb, sentence, words) for verb in (strong, weak) if verb)


def _introduces(verb: re.Match[str], sentence: str, words: str) -> bool:
    gap = sentence[verb.end() :].rstrip()
    pause = gap.endswith(_PAUSES)
    if len(gap.split()) > 12 or (not pause and _DETERMINER.search(gap)):
        return False
    near = " ".join(gap.rstrip("".join(_PAUSES)).split()[-1 if pause else -3 :])
    if _WRITTEN.search(near):
        return False
    if verb["weak"] and not _is_sentence(words) and not (pause and len(words.split()) > 1):
        return False
    sung = verb.group().lower().startswith(("sing", "sang"))
    if not pause and _is_title(words) and (verb["weak"] or sung):
        return False
    return not _subject_is_written(sentence[: verb.start()], verb.group())


def _subject_is_written(subject: str, verb: str) -> bool:
    """Whether what "says" the words is a sign, a shirt, a letter …, not somebody."""
    relative = re.search(r"(?<!\w)(?:that|which|que|qui|che)(?:\s+\w+ly)?\s*$", subject) or verb.lower().endswith("ing")
    for clause in reversed(_CLAUSE.split(subject)):
        written = [match.start() for match in _WRITTEN.finditer(clause)]
        speaking = [match.start() for match in _SPEAKER.finditer(clause)]
        if not written and not speaking:
            continue
        if not written or not speaking:
            if not speaking and _ASIDE.match(clause) and not relative:
                continue  # "wearing a cap, Maria says": the cap is not the subject
            return not speaking
        if relative or _ASIDE.match(clause):
            return written[-1] > speaking[-1]
        return written[0] < speaking[0]
    return False


def _attributed(sentence: str, words: str, after: str) -> bool:
    """`"…," she says`: a verb of speaking after the quotation."""
    match = _SAYS_AFTER.match(after)
    last_word = " ".join(sentence.split()[-1:])
    if not match or _DETERMINER.search(last_word) or _WRITTEN.search(last_word):
        return False
    who = match["who"]
    if _WRITTEN.search(who) or _WRITTEN.search(" ".join(after[match.end() :].split()[:3])):
        return False
    closed = words.endswith(",") or bool(_SENTENCE_END.search(words))
    named = not who.strip() or bool(_SPEAKER.search(who)) or who[:1].isupper()
    return closed if _WRITTEN.search(sentence) else closed or (named and not sentence.strip())


def _stands_alone(before: str, sentence: str, words: str, after: str) -> bool:
    """A whole sentence in quotes, or a script line such as `Anna: "…"`, with nothing written near it."""
    count = len(words.split())
    lead = sentence.strip()
    pause = lead.endswith(_PAUSES)
    continues = after.lstrip(" ,")[:1].islower()
    written = _SIGN if pause else _WRITTEN
    if written.search(sentence) or (continues and _WRITTEN.search(_SENTENCE_BREAK.split(after)[0])):
        return False
    if lead.endswith((":", "：")):
        label = lead[:-1].rstrip()
        if _WRITTEN.search(" ".join(label.split()[-1:])):
            return False
        somebody = _SPEAKER.search(label) or (label.isupper() and len(label.split()) <= 3)
        return _is_sentence(words) or (bool(somebody) and count >= 2)
    if words.isupper() or not _is_sentence(words):
        pronoun = re.match(r"\s*(?:he|she|they)\b", after)
        return bool(pronoun) and not lead and words.endswith(",") and count >= 2
    if not lead:
        return not (count <= 4 and _SIGN.search(before[-80:]))
    return not _is_title(words) and count >= (2 if pause else 4)


def _is_sentence(words: str) -> bool:
    first = next((character for character in words if character.isalnum()), "")
    return bool(_SENTENCE_END.search(words)) and not first.islower()


def _is_title(words: str) -> bool:
    """Whether every word of some length has a capital, as in a title."""
    every = _WORD.findall(words)
    long_words = [word for word in every if len(word) > 3] or every
    return bool(long_words) and all(word[0].isupper() for word in long_words)


def unmarked_speech_start(text: str, start: int, end: int) -> int | None:
    """Where speech without an opening mark begins in `text[start:end]`: after `says,` or `whispers softly:`."""
    begin = None
    for verb in _SAYS.finditer(text, start, end):
        lead = _LEAD_IN.match(text, verb.end(), end)
        begin = lead.end() if lead else begin
    return begin


# ------------------------------------------------------------------------------------------------ who speaks

_STOP = re.compile(r"(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)(?<![.!?…])[.!?…]+[\"”»’')\]]*(?=\s|$)|[。！？]")
_FRAMING = re.compile(
    r"(?:[\w’'-]+ ){0,5}?[\w-]*(?:shot|close-?up|view|portrait|footage|video|clip|scene)\s(?:of|on|shows)\s(?=\S)",
    re.IGNORECASE,
)
_PRONOUN = re.compile(r"(?:he|she|they|it|i|we|you|every(?:one|body)|some(?:one|body))(?![\w’'-])", re.IGNORECASE)
_ARTICLE = re.compile(
    r"(?:the|an?|this|these|those|his|her|their|its|my|your|our|another|each|every|some|both|one|two|three|four)$",
    re.IGNORECASE,
)
_PREPOSITION = re.compile(
    r"(?:of|in|on|at|with|without|under|near|by|beside|behind|above|below|inside|outside|over|between|from|for|to|into"
    r"|towards?|across|through|against|like|wearing|holding|carrying)$",
    re.IGNORECASE,
)
_NO_NAME = re.compile(r"(?:\w+(?:ing|ly)|there|here|after|once|to)$", re.IGNORECASE)
_FINITE = re.compile(r"(?:is|are|was|were|has|have|had|can|will|does|did)$|[a-z][\w-]*(?:[^\Wsui]|us|is)s$")
_ADVERB = re.compile(r"(?:(?:[a-z]+ly|also|just|still|only)\s+)+$")
_TOKEN = re.compile(r"\w+(?:['’-]\w+)*")
_NOT_FINITE = frozenset(["his", "its", "this", "always", "perhaps", "sometimes", "towards", "besides", "yes"])
_NOUNS = frozenset(["speech", "line", "dialogue", "voice", "speeches", "lines", "dialogues", "voices"])
_LABEL_WORDS = 5  # guessed: "The tall woman in green:" names a speaker; what is longer tells something
_LONGEST_SENTENCE = 1000  # characters; guessed: beyond it nobody could tell either


def sentence_start(text: str) -> int:
    """Where the sentence begins that is still open at the end of `text`; the end of `text` if none is."""
    body = text.rstrip()
    stops = [stop.end() for stop in _STOP.finditer(body)]
    start = stops[-1] if stops else 0
    return start + len(body[start:]) - len(body[start:].lstrip()) if start < len(body) else len(text)


def speaker(text: str) -> tuple[int, int]:
    """Where `text`, which leads up to a speech, names who speaks: start and end, the space behind it included.

    What stands before is the scene, what stands behind says how they speak. The span is empty where the last
    sentence does not tell, and then lies at its beginning; or at the end of `text`, where no sentence is open.
    """
    start, body = sentence_start(text), text.rstrip()
    if start == len(text):
        return start, start
    if len(body) - start > _LONGEST_SENTENCE:
        return start, start
    begin, end = _Sentence(body[start:]).subject()
    begin, end = start + begin, start + end
    return begin, len(text) - len(text[end:].lstrip()) if begin < end else end


class _Sentence:
    """A sentence that leads up to a speech, cut into clauses: begin, end and what stands before each."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.says = {verb.start(): verb for verb in _SAYS.finditer(text) if verb.group().lower() not in _NOUNS}
        breaks = [(0, 0), *(match.span() for match in _CLAUSE.finditer(text)), (len(text), len(text))]
        self.clauses = [
            (begin + len(text[begin:end]) - len(text[begin:end].lstrip()), end, text[mark:begin])
            for (mark, begin), (end, _) in pairwise(breaks)
            if text[begin:end].strip()
        ]

    def subject(self) -> tuple[int, int]:
        """Who speaks; (0, 0) if that cannot be told."""
        said = _CJK_SAYS_BEFORE.search(self.text)
        if said:
            return 0, said.start()
        label = self.text[:-1].rstrip()
        if self.text.endswith((":", "：")) and not self.says and len(label.split()) <= _LABEL_WORDS:
            return 0, len(label)
        verbs = sorted((bool(says["strong"]), not says.group().endswith("ing"), at) for at, says in self.says.items())
        last = verbs[-1][-1] if verbs else len(self.text)
        for index in reversed(range(len(self.clauses))):
            named = self.clauses[index][0] <= last and (self._named_in(index) or self._named_before(index))
            if named:
                return self._with_others(index), named
        return 0, 0

    def _opening(self, index: int) -> re.Match[str] | None:
        """The first word of clause `index`, behind "Close-up of", if it can begin a name."""
        begin, end, _ = self.clauses[index]
        framing = _FRAMING.match(self.text, begin, end)
        word = _TOKEN.search(self.text, framing.end() if framing else begin, end)
        if not word or _PREPOSITION.match(word.group()) or _NO_NAME.match(word.group()):
            return None
        known = _ARTICLE.match(word.group()) or _PRONOUN.match(word.group())
        return word if known or framing or word.group()[0].isupper() else None

    def _named_in(self, index: int) -> int:
        """Where the name ends that is followed by its verb in clause `index`; 0 if there is none."""
        opening, end = self._opening(index), self.clauses[index][1]
        if not opening:
            return 0
        if _PRONOUN.match(opening.group()):
            return opening.end()
        words = list(_TOKEN.finditer(self.text, opening.start(), end))
        verb = next((word for at, word in enumerate(words) if at and self._is_verb(words, at)), None)
        if not verb:
            return 0
        adverbs = _ADVERB.search(self.text, opening.end() + 1, verb.start())
        return adverbs.start() if adverbs else verb.start()

    def _named_before(self, index: int) -> int:
        """Where the name ends that fills clause `index`, its verb coming after a comma; 0 if there is none."""
        if not self._opening(index):
            return 0
        for begin, end, mark in self.clauses[index + 1 :]:
            if mark.strip() != ",":
                return 0
            if not _ASIDE.match(self.text, begin, end):
                verb = _TOKEN.match(self.text, begin, end)
                return begin if verb and (begin in self.says or _FINITE.match(verb.group())) else 0
        return 0

    def _is_verb(self, words: list[re.Match[str]], at: int) -> bool:
        """Whether a word is a finite verb rather than a plural."""
        word = words[at]
        if word.start() in self.says:
            return True
        if not _FINITE.match(word.group()) or word.group() in _NOT_FINITE:
            return False
        following = next((later for later in words[at + 1 :] if not _ADVERB.match(later.group() + " ")), None)
        if following and (following.start() in self.says or _FINITE.match(following.group())):
            return False  # "a man with round glasses slowly nods": two verbs never meet
        before = [earlier.group() for earlier in words[max(0, at - 3) : at]]
        if _ARTICLE.match(before[-1]) or _PREPOSITION.match(before[-1]):
            return False
        return not any(
            _PREPOSITION.match(first) and not _ARTICLE.match(second) for first, second in pairwise([*before, ""])
        )

    def _with_others(self, index: int) -> int:
        """Where the name in clause `index` begins, with those it is joined to: "A boy and a girl say"."""
        first = index
        while first and self.clauses[first][2].strip() in ("and", ",") and self._opening(first - 1):
            if self._named_in(first - 1) or (first == index and self.clauses[first][2].strip() == ","):
                break
            first -= 1
        opening = self._opening(first)
        return opening.start() if opening else 0
