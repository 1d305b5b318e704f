"""Functions of the held-out split: none of them, and none of their bugs, is in training."""

from __future__ import annotations

from palestra.tasks.katas.family import Bug, Family

HELDOUT_SCALARS = (
    Family(
        name="compare_versions",
        names="compare_versions version_order release_order",
        doc=(
            "Compare dotted version numbers, part by part as numbers: -1 when $a is older "
            "than $b, 1 when it is newer, 0 when they are the same."
        ),
        source="""
def $f($a, $b):
    $x = [int($p) for $p in $a.split(".")]
    $y = [int($p) for $p in $b.split(".")]
    if $x < $y:
        return -1
    if $x > $y:
        return 1
    return 0
""",
        slots={"a": "left one a", "b": "right two b", "x": "x parts", "y": "y others", "p": "p q"},
        bugs=(
            Bug(kind="wrong_constant", right="return -1", wrong="return 1"),
            Bug(kind="wrong_default", right="return 0", wrong="return None"),
            Bug(kind="boundary", right="$x < $y", wrong="$x <= $y", tier=2),
            Bug(kind="wrong_type", right="int($p) for $p in $a", wrong="$p for $p in $a", tier=2),
            Bug(
                kind="missing_guard", right="    if $x > $y:\n        return 1\n", wrong="", tier=4
            ),
        ),
        inputs=lambda d, c: (
            v := f"{d.number(0, 2)}.{d.number(8, 11)}",
            d.pick((v, f"{d.number(0, 2)}.{d.number(8, 11)}")),
        ),
    ),
    Family(
        name="is_triangle",
        names="is_triangle can_close fits_together",
        doc="Tell whether sides of lengths $a, $b and $c form a triangle that is not flat.",
        source="""
def $f($a, $b, $c):
    $x, $y, $z = sorted([$a, $b, $c])
    return $x + $y > $z
""",
        slots={"a": "a p", "b": "b q", "c": "c r", "x": "x short", "y": "y middle", "z": "z long"},
        bugs=(
            Bug(kind="boundary", right="$y > $z", wrong="$y >= $z", tier=2),
            Bug(kind="operator_swap", right="$x + $y", wrong="$x - $y"),
            Bug(kind="comparison_direction", right="$y > $z", wrong="$y < $z"),
            Bug(kind="dropped_step", right="sorted([$a, $b, $c])", wrong="[$a, $b, $c]", tier=2),
        ),
        inputs=lambda d, c: (
            (s := d.number(1, 6)),
            (t := d.number(1, 6)),
            d.pick((s + t, d.number(1, 9))),
        ),
    ),
    Family(
        name="power_of_two",
        names="is_power_of_two is_doubling halves_to_one",
        doc="Tell whether $n is 1, 2, 4, 8 or a further power of two; no other number is one.",
        source="""
def $f($n):
    return $n > 0 and $n & ($n - 1) == 0
""",
        slots={"n": "n number value"},
        bugs=(
            Bug(kind="boundary", right="$n > 0", wrong="$n >= 0", tier=2),
            Bug(kind="boundary", right="$n > 0", wrong="$n > 1", tier=2),
            Bug(kind="operator_swap", right="($n - 1)", wrong="($n + 1)"),
            Bug(kind="inverted_condition", right="1) == 0", wrong="1) != 0"),
        ),
        inputs=lambda d, c: (d.pick((0, 1, 2 ** d.number(1, 6), d.number(-8, 70))),),
    ),
    Family(
        name="clock_text",
        names="clock_text as_minutes_seconds duration_text",
        doc="Write $n seconds as minutes and seconds, the seconds with two digits: '3:07'.",
        source="""
def $f($n):
    $m = $n // 60
    $s = $n % 60
    return f"{$m}:{$s:02d}"
""",
        slots={"n": "seconds_in n duration", "m": "minutes m", "s": "seconds s"},
        bugs=(
            Bug(kind="operator_swap", right="$n // 60", wrong="$n % 60"),
            Bug(kind="wrong_constant", right="// 60", wrong="// 100"),
            Bug(kind="wrong_format", right=":02d", wrong=":2d", tier=2),
            Bug(kind="wrong_constant", right="% 60", wrong="% 59", tier=2),
        ),
        inputs=lambda d, c: (d.pick((d.number(0, 600), d.number(0, 9) * 60, d.number(0, 59))),),
    ),
    Family(
        name="snake_case",
        names="to_snake_case underscored split_camel",
        doc="Write $t, a name like 'maxItemCount', with small letters and underscores between.",
        source="""
def $f($t):
    $out = []
    for $c in $t:
        if $c.isupper():
            $out.append("_")
        $out.append($c.lower())
    return "".join($out)
""",
        slots={"t": "name text camel", "out": "out parts result", "c": "c char letter"},
        bugs=(
            Bug(kind="wrong_method", right="isupper", wrong="islower"),
            Bug(kind="wrong_constant", right='"_"', wrong='"-"'),
            Bug(kind="wrong_method", right="$c.lower()", wrong="$c.upper()"),
            Bug(kind="dropped_step", right="$c.lower()", wrong="$c", tier=2),
            Bug(
                kind="missing_lines",
                right='        if $c.isupper():\n            $out.append("_")\n',
                wrong="",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (d.word(2, 3) + "".join(w.title() for w in d.words(0, 2)),),
    ),
    Family(
        name="balanced",
        names="is_balanced brackets_match closes_properly",
        doc=(
            "Tell whether every '(' in $t is closed by a later ')' and no ')' comes "
            "before the '(' that it closes."
        ),
        source="""
def $f($t):
    $depth = 0
    for $c in $t:
        if $c == "(":
            $depth += 1
        elif $c == ")":
            $depth -= 1
        if $depth < 0:
            return False
    return $depth == 0
""",
        slots={"t": "text code line", "depth": "depth level open_count", "c": "c char sign"},
        bugs=(
            Bug(kind="comparison_direction", right="$depth == 0", wrong="$depth >= 0"),
            Bug(kind="initial_value", right="$depth = 0", wrong="$depth = 1"),
            Bug(kind="boundary", right="$depth < 0", wrong="$depth <= 0", tier=2),
            Bug(kind="wrong_return", right="return False", wrong="return True", tier=2),
            Bug(
                kind="missing_guard",
                right="        if $depth < 0:\n            return False\n",
                wrong="",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (
            d.pick(("", "()", "(())", ")(", "())(", "a(b)", "(", "(()", d.word(0, 5, "()a"))),
        ),
    ),
    Family(
        name="mask",
        names="masked hide_all_but_last starred",
        doc="Return $t with '*' for every character but the last $k; a shorter $t stays as it is.",
        source="""
def $f($t):
    $n = max(0, len($t) - $k)
    return "*" * $n + $t[$n:]
""",
        slots={"t": "text number_text secret", "n": "hidden n covered"},
        constants={"k": (2, 4)},
        bugs=(
            Bug(kind="min_max_swap", right="max(0,", wrong="min(0,"),
            Bug(kind="wrong_slice", right="$t[$n:]", wrong="$t[:$n]"),
            Bug(kind="off_by_one", right="len($t) - $k", wrong="len($t) - $k - 1"),
            Bug(
                kind="missing_edge_case", right="max(0, len($t) - $k)", wrong="len($t) - $k", tier=2
            ),
        ),
        inputs=lambda d, c: (d.word(0, 9, "0123456789"),),
    ),
)

HELDOUT_COLLECTIONS = (
    Family(
        name="lower_median",
        names="lower_median middle_value central",
        doc=(
            "Return the middle one of $xs when sorted; of two middle ones the smaller. "
            "$xs is not empty and stays as it is."
        ),
        source="""
def $f($xs):
    $ordered = sorted($xs)
    return $ordered[(len($ordered) - 1) // 2]
""",
        slots={"xs": "values samples times", "ordered": "ordered ranked line"},
        bugs=(
            Bug(
                kind="off_by_one",
                right="(len($ordered) - 1)",
                wrong="len($ordered)",
                tier=2,
            ),
            Bug(kind="dropped_step", right="sorted($xs)", wrong="list($xs)"),
            Bug(kind="wrong_constant", right="// 2", wrong="// 3"),
        ),
        inputs=lambda d, c: (d.numbers(1, 6),),
    ),
    Family(
        name="run_lengths",
        names="run_lengths encoded_runs compress",
        doc="Turn $t into a list of [character, count], one for each run of equal characters.",
        source="""
def $f($t):
    $out = []
    for $c in $t:
        if $out and $out[-1][0] == $c:
            $out[-1][1] += 1
        else:
            $out.append([$c, 1])
    return $out
""",
        slots={"t": "text word row", "out": "out runs result", "c": "c char sign"},
        bugs=(
            Bug(kind="initial_value", right="[$c, 1]", wrong="[$c, 0]"),
            Bug(kind="inverted_condition", right="[0] == $c", wrong="[0] != $c"),
            Bug(kind="wrong_index", right="$out[-1][0]", wrong="$out[0][0]", tier=2),
            Bug(kind="wrong_index", right="$out[-1][1]", wrong="$out[0][1]", tier=2),
            Bug(
                kind="missing_lines",
                right=(
                    "        if $out and $out[-1][0] == $c:\n"
                    "            $out[-1][1] += 1\n"
                    "        else:\n"
                    "            $out.append([$c, 1])\n"
                ),
                wrong="        $out.append([$c, 1])\n",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (d.word(0, 7, "ab"),),
    ),
    Family(
        name="column_sums",
        names="column_sums totals_by_column sum_columns",
        doc="Return the sum of each column of $m, rows of one length; without rows an empty list.",
        source="""
def $f($m):
    if not $m:
        return []
    return [sum($row[$j] for $row in $m) for $j in range(len($m[0]))]
""",
        slots={"m": "table grid matrix", "row": "row line", "j": "j column"},
        bugs=(
            Bug(kind="wrong_variable", right="len($m[0])", wrong="len($m)", tier=2),
            Bug(kind="wrong_index", right="$row[$j]", wrong="$row[0]"),
            Bug(kind="min_max_swap", right="[sum(", wrong="[max("),
            Bug(kind="range_off_by_one", right="range(len", wrong="range(1, len"),
            Bug(
                kind="missing_guard",
                right="    if not $m:\n        return []\n",
                wrong="",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (
            (w := d.number(1, 3)) and [d.numbers(w, w, 0, 9) for _ in range(d.number(0, 3))],
        ),
    ),
    Family(
        name="differences",
        names="differences changes_between growth",
        doc="Return by how much each entry of $xs exceeds the one before it, in order.",
        source="""
def $f($xs):
    return [$y - $x for $x, $y in zip($xs, $xs[1:])]
""",
        slots={"xs": "values levels readings", "x": "before x", "y": "after y"},
        bugs=(
            Bug(kind="swapped_names", right="$y - $x", wrong="$x - $y"),
            Bug(kind="operator_swap", right="$y - $x", wrong="$y + $x"),
            Bug(kind="slice_off_by_one", right="$xs[1:]", wrong="$xs[2:]", tier=2),
            Bug(kind="wrong_slice", right="zip($xs, $xs[1:])", wrong="zip($xs, $xs[:1])", tier=2),
        ),
        inputs=lambda d, c: (d.numbers(0, 5),),
    ),
    Family(
        name="interleave",
        names="interleaved take_turns zipped_together",
        doc="Take from $a and $b in turns, $a first; what is left of the longer follows.",
        source="""
def $f($a, $b):
    $out = []
    for $i in range(max(len($a), len($b))):
        if $i < len($a):
            $out.append($a[$i])
        if $i < len($b):
            $out.append($b[$i])
    return $out
""",
        slots={"a": "left evens ones", "b": "right odds twos", "out": "out result", "i": "i index"},
        bugs=(
            Bug(kind="min_max_swap", right="range(max(", wrong="range(min("),
            Bug(kind="wrong_variable", right="append($b[$i])", wrong="append($a[$i])"),
            Bug(kind="boundary", right="$i < len($a)", wrong="$i <= len($a)", tier=2),
            Bug(kind="wrong_variable", right="if $i < len($b)", wrong="if $i < len($a)", tier=2),
            Bug(
                kind="missing_lines",
                right="        if $i < len($b):\n            $out.append($b[$i])\n",
                wrong="",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (d.numbers(0, 4, 0, 9), d.numbers(0, 4, 10, 19)),
    ),
    Family(
        name="histogram",
        names="histogram bucket_counts tallied",
        doc="Count $xs by buckets of width $k: a bucket is named by its least whole number.",
        source="""
def $f($xs):
    $out = {}
    for $x in $xs:
        $low = $x // $k * $k
        $out[$low] = $out.get($low, 0) + 1
    return $out
""",
        slots={"xs": "values ages sizes", "out": "out counts", "x": "x value", "low": "low bucket"},
        constants={"k": (3, 10)},
        bugs=(
            Bug(kind="operator_swap", right="$x // $k", wrong="$x % $k"),
            Bug(kind="wrong_default", right="($low, 0)", wrong="($low, 1)"),
            Bug(kind="wrong_key", right="$out[$low] =", wrong="$out[$x] =", tier=2),
            Bug(kind="dropped_step", right="$x // $k * $k", wrong="$x // $k", tier=2),
        ),
        inputs=lambda d, c: (d.numbers(0, 6, 0, 25),),
    ),
    Family(
        name="flatten",
        names="flattened one_level_less unnested",
        doc="Return the entries of $xs, with each list among them replaced by its own entries.",
        source="""
def $f($xs):
    $out = []
    for $x in $xs:
        if isinstance($x, list):
            $out.extend($x)
        else:
            $out.append($x)
    return $out
""",
        slots={"xs": "items values tree", "out": "out flat result", "x": "x item value"},
        bugs=(
            Bug(kind="wrong_method", right="$out.extend", wrong="$out.append"),
            Bug(kind="wrong_return", right="return $out", wrong="return $xs"),
            Bug(kind="wrong_slice", right="extend($x)", wrong="extend($x[:1])", tier=2),
            Bug(kind="wrong_type", right="($x, list)", wrong="($x, tuple)", tier=2),
            Bug(
                kind="missing_lines",
                right="        else:\n            $out.append($x)\n",
                wrong="",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (
            [d.pick((d.number(0, 9), d.numbers(0, 3))) for _ in range(d.number(0, 4))],
        ),
    ),
    Family(
        name="ranking",
        names="ranking_table ordered_results placed",
        doc="Sort $xs, pairs of name and points: most points first, equal points by name.",
        source="""
def $f($xs):
    return sorted($xs, key=lambda $r: (-$r[1], $r[0]))
""",
        slots={"xs": "results players entries", "r": "r entry pair"},
        bugs=(
            Bug(kind="sort_direction", right="(-$r[1]", wrong="($r[1]"),
            Bug(kind="wrong_key", right="-$r[1], $r[0]", wrong="-$r[1], -$r[1]", tier=2),
            Bug(kind="wrong_key", right="(-$r[1], $r[0])", wrong="$r[0]"),
            Bug(kind="wrong_key", right="(-$r[1], $r[0])", wrong="(-$r[1], len($r[0]))", tier=2),
        ),
        inputs=lambda d, c: ([(d.word(1, 3), d.number(1, 3)) for _ in range(d.number(0, 4))],),
    ),
)
