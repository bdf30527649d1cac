"""Odd and wrong inputs of every command, and what is said to each: words, with {names} of files, | and a part."""

from __future__ import annotations

import json

TWO = ["generate", "a fox", "a car"]
ONE = ["generate", "a fox", "--style", "plain"]
SEARCH = ["heads", "search", "--objective", "contrast", "--prompts", "{lines}"]
CHECK = ["heads", "check", "L1H0", "--objective", "contrast", "--prompts", "{lines}"]
ATLAS = ["heads", "atlas", "--objective", "contrast", "--prompt", "a fox"]
STYLE = ["eval", "style"]
EDITS = ["eval", "edit"]
MASKS = ["eval", "masks"]
HEADS = ["eval", "heads", "L1H0", "--objective", "contrast", "--prompts", "{lines}"]
LOOK = ["attention", "a fox on a beach"]
APP = ["app", "--no-browser"]
OUT = {"generate", "run", "demo", "attention", "search", "check", "atlas", "style", "heads", "edit", "masks"}
"""Commands that write to --out."""


def table(command: list[str], text: str) -> list[tuple[list[str], str]]:
    """Lines of `words | what is said`; a word with spaces stands in quotes of its own."""
    found = []
    for line in text.strip().splitlines():
        words, _, says = line.rpartition(" | ")
        found.append(([*command, *(w.replace("~", " ") for w in words.split())], says.strip()))
    return found


def ran_with(device: str, dtype: str, threads: int) -> str:
    """A recipe that ran there."""
    where = {"attnctrl": "0", "torch": "2", "diffusers": "0", "device": device, "dtype": dtype, "threads": threads}
    return json.dumps({"prompts": ["a fox"], "environment": where})


BAD = [
    *table(
        TWO,
        """
--size 1000000 | height
--size 4096 | at most 384 px
--size 20000 | height
--size 0 | WIDTHxHEIGHT
--size -64 | WIDTHxHEIGHT
--size big | WIDTHxHEIGHT
--size 64x | WIDTHxHEIGHT
--size 64x64x64 | WIDTHxHEIGHT
--size 64.5 | WIDTHxHEIGHT
--size 60 | 64 is the nearest
--size 64x60 | 64 is the nearest
--size 99999999999999999999 | WIDTHxHEIGHT
--size 1e3 | WIDTHxHEIGHT
--size 392 --model tiny-sd3 | at most 384 px
--size 1032 --model tiny-flux | at most 1024 px
--steps 0 | num_inference_steps
--steps -3 | num_inference_steps
--steps 1000000 | num_inference_steps
--steps two | --steps
--steps 2.5 | --steps
--seed -1 | seed
--seed 9223372036854775808 | seed
--seed x | --seed
--batch-size 0 | batch_size
--batch-size 1 | batch_size
--batch-size 99999999 | batch_size
--guidance-scale nan | guidance_scale
--guidance-scale inf | guidance_scale
--guidance-scale -1 | guidance_scale
--guidance-scale 1e30 | guidance_scale
--true-cfg-scale nan | true_cfg_scale
--true-cfg-scale -2 | true_cfg_scale
--true-cfg-scale 1e9 | true_cfg_scale
--strength -1 | strength
--strength nan | strength
--strength inf | strength
--strength 1e30 | beyond 1000
--strength much | --strength
--blocks 0-5/0 | blocks
--blocks 5-0 | runs backwards
--blocks L | cannot read
--blocks 0-99999999999999999999 | cannot read
--blocks ../x | cannot read
--at-steps half | cannot read
--at-steps 0%-140% | ends at 100%
--at-steps 9-2 | runs backwards
--at-steps 30-40 | steps 0-23
--at-steps 5 --steps 3 | steps 0-2
--at-steps -1 | cannot read
--style alinged | choose aligned
--style nag | --control nag has it
--style plain --strength 1 | --strength is of a style
--style freecus | add --reference
--control nagg | did you mean nag
--control nag:phi | write setting=value
--control nag:phi=0 | phi
--control nag:phi=1e30 | beyond 1e+06
--control nag:phi=nan | phi
--control nag:strength=1e30 | beyond 1000
--control nag:colour=blue | has no setting
--control nag:heads=L1H0 | heads cannot be chosen
--control nag:phi=2,phi=3 | given twice
--control nag:prompt="x | not closed
--control aligned:shift=1 | shift
--control aligned:key_scale=-1 | key_scale
--control aligned:key_scale.start=1e30 | key_scale
--control softpag:u=2 | u
--control slg:heads=L1H1 | heads cannot be chosen
--control tpg:seed=-1 | seed
--control seg:sigma=0 | sigma
--control pag:rule=x | rule
--control apg:momentum=1 | momentum
--control nag:steps=50-60 | steps 0-23
--control : | there is no control
--heads flux-green | is for black-forest-labs/FLUX.1-dev
--heads flux-gren | there is no preset
--heads no.json | cannot read the preset
--heads L1H1 --u 2 | u
--heads L1H1 --u nan | u
--heads L1H1 --head-strength -1 | strength
--heads L1H1 --head-strength 1e30 | beyond 1000
--heads {text} | there is no preset
--head-strength 2 | belong to --heads
--u 0.5 | belong to --heads
--model tiny-flax | there is no model
--model ../nowhere | there is no model
--model a/b/c | there is no model
--model {text} | model
--device gpu9 | no device
--device x:0 | no device
--dtype int3 | choose float32
--offload all | choose none
--offload model --device cpu | leave it out
--reference no.png | there is no picture
--reference {folder} | is a folder
--reference {text} | as a picture
--reference {torn} | as a picture
--reference {bomb} | as a picture
--reference {small} | at least 8 px
--reference {ribbon} | narrower than 1:8
--reference {picture} --style plain | --style aligned
--reference {picture} --mask {other} | mask of the picture's size
--reference {picture} --mask no.png | there is no picture
--reference {picture} --caption a --caption b | 2 times for 1
--caption a | says something of a reference
--mask {picture} | says something of a reference
--bogus | No such option
--size | requires an argument
--size ٦٤ | WIDTHxHEIGHT
--blocks 99 | this model has blocks 0-5
--blocks fist | no stream 'fist'
--blocks late,99 | out of range
--control aligned:blocks=99 | out of range
--control softpag:heads=L1H99 | block 1 has heads 0-3
--control softpag:heads=L99H1 | names block 99
--control softpag:heads=L1H1,blocks=0 | selects no block or head
--control aligned --control aligned | aligned and aligned both set
--heads L1H99 | block 1 has heads 0-3
--heads {tall} | blocks 99
--heads {other_kind} | architecture flux
--heads {array} | object
--heads {half} | JSON
--heads {text}.json | cannot read the preset
--model {no_index} | is no diffusers model
--model {bad_index} | is no diffusers model
--device cuda:x | no device
--true-cfg-scale 5 | its classifier-free guidance is guidance_scale
--reference {picture} --mask {black} | black all over
--reference {pipe} | a pipe or a device
--reference {picture} --blocks 99 | out of range
--reference http://x/y.png | no picture
--load {leaves} | SystemExit: 3
--load {folder} | no such file
--load {no_class} | no control that can be planned
--load no.py | there is no such file
--load {text} | Python file
--load {broken} | line 1
""",
    ),
    *table(
        ONE,
        """
--blocks 1 | of a style
--at-steps 1 | of a style
--control softpag:u=0.1:0.2,heads=L1H1 | 2 numbers for 1
""",
    ),
    (["generate"], "Missing argument"),
    (["generate", "a fox"], "one prompt has nothing to share"),
    (["generate", "a \udcff", "b"], "prompts"),
    ([*TWO, "--negative-prompt", "\udcfe"], "negative_prompt"),
    ([*TWO, "--out", ""], "names no folder"),
    ([*TWO, "--out", "."], "names no folder"),
    ([*TWO, "--out", ".."], "names no folder"),
    ([*TWO, "--out", "/"], "names no folder"),
    ([*TWO, "--out", "x" * 300], "over 200 letters"),
    ([*TWO, "--out", "y" * 300 + "/set"], "over 200 letters"),
    ([*TWO, "--out", "/proc/attnctrl/set"], "cannot be written"),
    ([*TWO, "--out", "/dev/null/set"], "out"),
    ([*TWO, "--out", "{text}"], "is a file; name a new folder"),
    ([*TWO, "--out", "{text}/set"], "out"),
    ([*TWO, "--out", "{used}"], "exists already"),
    ([*TWO, "--out", "a\udcff"], "no text"),
    ([*TWO, "--out", " "], "names no folder"),
    ([*TWO, "--out", "a\nb"], "end of line"),
    ([*TWO, "--out", "{pipe}"], "is a file"),
    ([*TWO, "--style", ""], "choose aligned"),
    ([*TWO, "--device", ""], "no device"),
    ([*TWO, "--model", ""], "there is no model"),
    ([*TWO, "--blocks", ""], "cannot read"),
    ([*TWO, "--heads", ""], "there is no preset"),
    ([*TWO, "--reference", ""], "is a folder"),
    (["generate", *["a fox"] * 10_001], "10000"),
    (["run", ""], "cannot read the recipe"),
    (["run", "{pipe}"], "a pipe or a device"),
    (["run", "/dev/zero"], "a pipe or a device"),
    (["run", "{deep}"], "recursion"),
    ([*STYLE, "--sets", ""], "sets"),
    ([*STYLE, "--sets", "{pipe}"], "a pipe or a device"),
    ([*STYLE, "--negative-prompt", "\udcff"], "no UTF-8"),
    ([*STYLE, "--out", "{damaged}"], "is damaged"),
    ([*STYLE, "--out", "{used}"], "holds other files"),
    ([*ATLAS, "--prompt", "a \udcff"], "no UTF-8"),
    ([*SEARCH, "--prompts", "{pipe}"], "a pipe or a device"),
    ([*SEARCH, "--out", "{damaged}"], "is damaged"),
    (["heads", "check", "L1H99", *CHECK[3:]], "block 1 has heads 0-3"),
    (["heads", "check", "{tall}", *CHECK[3:]], "blocks 99"),
    (["eval", "heads", "L1H0", "L1H0", *HEADS[3:]], "given twice"),
    (["eval", "heads", "L1H99", *HEADS[3:]], "block 1 has heads 0-3"),
    (["eval", "report", "no"], "holds no run"),
    (["eval", "report", "{damaged}"], "damaged"),
    (["eval", "report", "{text}"], "holds no run"),
    (["eval", "report", "no", "--rows", "0"], "--rows"),
    (["eval", "report"], "Missing argument"),
    (["eval", "diff", "no"], "Missing argument"),
    (["eval", "diff", "no", "no"], "holds no run"),
    (["eval", "metrics", "x"], "unexpected"),
    (["embedded", "train"], "Missing argument"),
    (["embedded", "train", "tiny-sd3", "--recipe", "no.json"], "--recipe"),
    (["embedded", "export", "tiny-sd3", "--run", "{folder}"], "holds no training run"),
    (["methods", ""], "there is no control"),
    (["info", "--model", ""], "there is no model"),
    (["app", "--no-browser", "--limits", "{pipe}"], "a pipe or a device"),
    (["app", "--no-browser", "--host", ""], "is not found"),
    (["app", "--no-browser", "--host", "a b"], "is not found"),
    ([""], "No such command"),
    *table(
        ["run"],
        """
no.json | cannot read the recipe
{folder} | cannot read the recipe
{text} | Invalid JSON
{picture} | carries no recipe
{small} | carries no recipe
{bomb} | cannot read the recipe
{torn} | carries no recipe
--device | requires an argument
""",
    ),
    (["run"], "Missing argument"),
    *[
        (["run", "{recipe:" + body + "}"], says)
        for body, says in {
            "[]": "object",
            "null": "object",
            '{"prompts": []}': "prompts",
            '{"prompts": "a"}': "prompts",
            '{"prompts": [1]}': "prompts",
            '{"prompts": ["a"], "stile": 1}': "stile",
            '{"prompts": ["a"], "model": "nosuch"}': "there is no model",
            '{"prompts": ["a"], "height": 1000000000}': "height",
            '{"prompts": ["a"], "height": 0}': "height",
            '{"prompts": ["a"], "width": -8}': "width",
            '{"prompts": ["a"], "width": 60}': "64 is the nearest",
            '{"prompts": ["a"], "width": true}': "width",
            '{"prompts": ["a"], "seed": -1}': "seed",
            '{"prompts": ["a"], "seed": 1e400}': "seed",
            '{"prompts": ["a"], "num_inference_steps": 100000}': "num_inference_steps",
            '{"prompts": ["a"], "batch_size": 1}': "batch_size",
            '{"prompts": ["a"], "guidance_scale": -1}': "guidance_scale",
            '{"prompts": ["a"], "guidance_scale": 1e308}': "guidance_scale",
            '{"prompts": ["a"], "max_sequence_length": 999999}': "max_sequence_length",
            '{"prompts": ["a"], "recipe": 2}': "recipe",
            '{"prompts": ["a"], "control": [{"kind": "x"}]}': "there is no control",
            '{"prompts": ["a"], "control": [7]}': "described by its kind",
            '{"prompts": ["a"], "control": {"kind": "nag"}}': "control",
            '{"prompts": ["a"], "control": [{"kind": "nag", "strength": 1e30}]}': "beyond 1000",
            '{"prompts": ["a"], "control": [{"kind": "nag", "where": {"steps": "99"}}]}': "steps 0-23",
            '{"prompts": ["a"], "control": [{"kind": "freecus"}]}': "reference",
            '{"prompts": ["a"], "control": [{"kind": "freecus", "reference": {"picture": "x"}}]}': "no picture",
            ran_with("cpu", "float32", 0): "threads",
            ran_with("cpu", "float32", -5): "threads",
            ran_with("cpu", "float32", 10**9): "threads",
            ran_with("gpu", "float32", 1): "no device",
            ran_with("cpu", "int3", 1): "choose float32",
        }.items()
    ],
    *table(["info"], "--model nosuch | there is no model\n--model a/b/c | there is no model\nx | unexpected"),
    *table(["methods"], "nagg | did you mean nag\n--all | No such option\n_ | there is no control"),
    *table(
        ["demo"],
        "--seed x | --seed\n--seed -1 | --seed\n--size 3 | No such option\n--out {text} | is a file; name a new folder",
    ),
    *table(
        APP,
        """
--port 99999 | 1 to 65535
--port -1 | 1 to 65535
--port 0 | 1 to 65535
--port x | --port
--host 300.1.1.1 | no address
--host 1.2.3 | no address
--host 192.0.2.77 | cannot listen
--model nosuch | there is no model
--auth name | NAME:PASSWORD
--auth :x | NAME:PASSWORD
--share | add --auth
--limits no.json | cannot read the limits
--limits {folder} | cannot read the limits
--limits {text} | Invalid JSON
--device gpu | no device
--dtype x | choose float32
--offload x | choose none
""",
    ),
    *table(
        LOOK,
        """
--word dragon | no word
--word fox~beach | no word
--word , | no word
--map-size 0 | one token or more
--map-size x | --map-size
--size 60 | 64 is the nearest
--size 9999 | at most
--steps 0 | num_inference_steps
--steps 1000000 | num_inference_steps
--seed -1 | seed
--at-steps 40 | steps 0-23
--blocks 99 | out of range
--heads L99H0 | names block 99
--at-steps x | cannot read
--blocks 3-1 | runs backwards
--heads L1 | cannot read
--model nosuch | there is no model
--device gpu9 | no device
--out {used} | exists already
""",
    ),
    (["attention", "a fox"], "Missing option"),
]
