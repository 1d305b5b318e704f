"""Functions of the training split on text."""

from __future__ import annotations

from palestra.tasks.katas.family import Bug, Family

TRAIN_TEXT = (
    Family(
        name="minutes",
        names="to_minutes minutes_of parse_clock",
        doc="Turn $t, hours and minutes written like '2:05', into a number of minutes.",
        source="""
def $f($t):
    $h, $m = $t.split(":")
    return int($h) * 60 + int($m)
""",
        slots={"t": "text clock stamp", "h": "hours h", "m": "minutes m"},
        bugs=(
            Bug(kind="wrong_constant", right="* 60", wrong="* 100"),
            Bug(kind="swapped_names", right="$h, $m =", wrong="$m, $h ="),
            Bug(kind="operator_swap", right="60 + int", wrong="60 - int"),
        ),
        inputs=lambda d, c: (f"{d.number(0, 12)}:{d.pick((0, d.number(0, 59))):02d}",),
    ),
    Family(
        name="longest_word",
        names="longest_word longest_in widest_word",
        doc="Return the longest word of $t; the first of them when several are equally long.",
        source="""
def $f($t):
    $best = ""
    for $w in $t.split():
        if len($w) > len($best):
            $best = $w
    return $best
""",
        slots={"t": "text sentence line", "best": "best longest winner", "w": "word token w"},
        bugs=(
            Bug(kind="boundary", right="len($w) > len", wrong="len($w) >= len", tier=2),
            Bug(kind="comparison_direction", right="len($w) > len", wrong="len($w) < len"),
            Bug(kind="wrong_variable", right="return $best", wrong="return $t"),
            Bug(
                kind="dropped_condition",
                right="        if len($w) > len($best):\n            $best = $w\n",
                wrong="        $best = $w\n",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (" ".join(d.words(0, 5)),),
    ),
    Family(
        name="palindrome",
        names="is_palindrome reads_both_ways is_mirror",
        doc="Tell whether $t reads the same backwards; case and blanks do not count.",
        source="""
def $f($t):
    $s = $t.replace(" ", "").lower()
    return $s == $s[::-1]
""",
        slots={"t": "text phrase sentence", "s": "letters cleaned plain"},
        bugs=(
            Bug(kind="dropped_step", right=".lower()", wrong=""),
            Bug(kind="wrong_method", right='.replace(" ", "")', wrong=".strip()", tier=2),
            Bug(kind="wrong_slice", right="$s[::-1]", wrong="$s[::1]"),
            Bug(kind="slice_off_by_one", right="$s[::-1]", wrong="$s[1:][::-1]"),
        ),
        inputs=lambda d, c: (
            (w := d.word(2, 4))[:1]
            + d.pick(("", " "))
            + w[1:]
            + d.pick((w[::-1], w[::-1].title(), d.word())),
        ),
    ),
    Family(
        name="count_vowels",
        names="count_vowels vowels_in num_vowels",
        doc="Count the vowels (a, e, i, o, u) of $t, small and capital ones.",
        source="""
def $f($t):
    return sum(1 for $c in $t.lower() if $c in "aeiou")
""",
        slots={"t": "text word line", "c": "c char letter"},
        bugs=(
            Bug(kind="wrong_method", right=".lower()", wrong=".upper()"),
            Bug(kind="wrong_constant", right='"aeiou"', wrong='"aeio"', tier=2),
            Bug(kind="inverted_condition", right="if $c in", wrong="if $c not in"),
            Bug(kind="dropped_step", right="$t.lower()", wrong="$t", tier=2),
        ),
        inputs=lambda d, c: (d.pick((str.lower, str.title, str.upper))(d.word(2, 8, "abeioutsU")),),
    ),
    Family(
        name="initials",
        names="initials short_form abbreviation",
        doc="Return the first letter of each word of $t as a capital with a dot, joined: 'A.B.'.",
        source="""
def $f($t):
    return "".join($w[0].upper() + "." for $w in $t.split())
""",
        slots={"t": "name title phrase", "w": "word part piece"},
        bugs=(
            Bug(kind="wrong_index", right="$w[0]", wrong="$w[-1]"),
            Bug(kind="wrong_method", right=".upper()", wrong=".lower()"),
            Bug(kind="wrong_method", right="$t.split()", wrong='$t.split(" ")', tier=2),
            Bug(kind="wrong_constant", right='"".join', wrong='" ".join'),
        ),
        inputs=lambda d, c: (d.pick((" ", "  ")).join(d.words(1, 4)),),
    ),
    Family(
        name="strip_prefix",
        names="without_prefix cut_prefix drop_prefix",
        doc="Return $t without $p at its beginning, removed once; without $p there, $t unchanged.",
        source="""
def $f($t, $p):
    if $t.startswith($p):
        return $t[len($p):]
    return $t
""",
        slots={"t": "text line name", "p": "prefix lead mark"},
        bugs=(
            Bug(kind="wrong_method", right="startswith", wrong="endswith"),
            Bug(kind="wrong_method", right="$t[len($p):]", wrong="$t.lstrip($p)", tier=2),
            Bug(kind="wrong_method", right="$t[len($p):]", wrong='$t.replace($p, "")', tier=2),
            Bug(kind="slice_off_by_one", right="$t[len($p):]", wrong="$t[len($p) - 1:]"),
            Bug(
                kind="dropped_condition",
                right="    if $t.startswith($p):\n        return $t[len($p):]\n    return $t\n",
                wrong="    return $t[len($p):]\n",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (
            d.pick(((p := d.word(2, 3)) + p[-1:] + d.word(), p + d.word() + p, d.word())),
            p,
        ),
    ),
    Family(
        name="caesar",
        names="shift_letters rotate_letters encode_text",
        doc=(
            "Move each letter a to z of $t forward by $k places in the alphabet, "
            "from z on to a; leave other characters as they are."
        ),
        source="""
def $f($t):
    $out = []
    for $c in $t:
        if "a" <= $c <= "z":
            $c = chr((ord($c) - 97 + $k) % 26 + 97)
        $out.append($c)
    return "".join($out)
""",
        slots={"t": "text message word", "out": "out result letters", "c": "c char letter"},
        constants={"k": (2, 9)},
        bugs=(
            Bug(kind="operator_swap", right="97 + $k", wrong="97 - $k"),
            Bug(kind="wrong_constant", right="% 26", wrong="% 25", tier=2),
            Bug(kind="boundary", right='<= "z"', wrong='< "z"', tier=2),
            Bug(kind="off_by_one", right="26 + 97", wrong="26 + 96"),
            Bug(
                kind="dropped_condition",
                right=(
                    '        if "a" <= $c <= "z":\n'
                    "            $c = chr((ord($c) - 97 + $k) % 26 + 97)\n"
                ),
                wrong="        $c = chr((ord($c) - 97 + $k) % 26 + 97)\n",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (d.word(0, 3, "abcz") + d.pick(("", " ", "!")) + d.word(0, 3, "ayz"),),
    ),
    Family(
        name="parse_pairs",
        names="parse_pairs read_settings to_settings",
        doc=(
            "Read $t, pairs like 'a=1;b=2', into a dict of strings. Blanks around keys and values "
            "do not count, empty parts are skipped, and a value may hold '=' itself."
        ),
        source="""
def $f($t):
    $out = {}
    for $p in $t.split(";"):
        if not $p.strip():
            continue
        $key, $value = $p.split("=", 1)
        $out[$key.strip()] = $value.strip()
    return $out
""",
        slots={
            "t": "text line config",
            "out": "settings out result",
            "p": "part pair piece",
            "key": "key name",
            "value": "value content",
        },
        bugs=(
            Bug(kind="wrong_method", right='.split("=", 1)', wrong='.rsplit("=", 1)', tier=2),
            Bug(kind="wrong_constant", right='.split("=", 1)', wrong='.split("=", 2)', tier=2),
            Bug(kind="dropped_step", right="$value.strip()", wrong="$value"),
            Bug(kind="wrong_method", right="$key.strip()", wrong="$key.lstrip()", tier=2),
            Bug(kind="swapped_names", right="$key, $value =", wrong="$value, $key ="),
            Bug(
                kind="missing_guard",
                right="        if not $p.strip():\n            continue\n",
                wrong="",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (
            d.pick((";", ";;", "; ")).join(
                f"{d.word(1, 2)}{d.pick(('', ' '))}={d.pick(('', ' '))}{d.pick(('1', 'x=2', 'no'))}"
                for _ in range(d.number(0, 3))
            ),
        ),
    ),
)
