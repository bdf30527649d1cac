"""Odd and wrong inputs of heads and evaluations; bad_inputs.py says how they are written."""

from __future__ import annotations

from bad_inputs import ATLAS, CHECK, EDITS, HEADS, MASKS, SEARCH, STYLE, table

BAD = [
    *[(words, says) for command in (SEARCH, ATLAS, HEADS, STYLE, EDITS) for words, says in table(command, """
--size 60 | 64 is the nearest
--size 9999 | at most
--steps 0 | num_inference_steps
--threads 0 | threads
--threads 99999999 | threads
--model nosuch | there is no model
--device gpu9 | no device
--out {text} | file
--seed x | --seed
""")],
    *table(SEARCH, """
--seeds 0-99999999999 | at most 100000 seeds
--seeds 99999999999999999999 | at most 100000 seeds
--seeds 4-2 | runs backwards
--seeds x | write 0-4
--rounds 0 | rounds
--seeds 1,1 | given twice
--seeds -1 | write 0-4
--blocks 99 | out of range
--strength 0 | strength
--u 0 | u
--top-k -1 | top_k
--blocks 0-5/0 | blocks
--u 2 | u
--strength nan | strength
--strength 1e30 | strength
--batch-size 0 | batch_size
--objective contrst | did you mean contrast
--objective os:system | own library
--objective json:dumps | own library
--objective nosuch:thing | no objective
--objective sum: | needs
--objective harmonic:2*contrast+nosuch | no objective
--objective color | needs
--objective contrast:7 | nothing after the colon
--prompts no.txt | cannot read the prompts
--prompts {folder} | cannot read the prompts
--prompts {empty} | holds no prompt
--prompts {picture} | no text file
"""),
    *table(CHECK, """
--random-sets -1 | random_sets
--out x.txt | NAME.json
--seeds 0-99999999999 | at most 100000 seeds
--u 7 | u
--strength -1 | strength
--out {folder} | NAME.json
--out /proc/x/y.json | cannot be written
"""),
    (["heads", "check", "nosuch", *CHECK[3:]], "there is no preset"),
    (["heads", "nosuch"], "No such command"),
    (["heads", "presets", "x"], "unexpected"),
    *table(HEADS, "--repeats 0 | repeats\n--random-sets -2 | random_sets\n--u 3 | u\n--guidance-scale inf | guidance"),
    *table(STYLE, """
--methods nosuch | no
--methods aligned:blocks=99 | out of range
--methods aligned:steps=90 | steps 0-23
--true-cfg-scale 3 | its classifier-free guidance is guidance_scale
--sweep strength | sweep
--sets no.jsonl | sets
--first 0 | choose 1 to
--batch-size 0 | batch_size
--guidance-scale -1 | guidance_scale
--seed -1 | seed
"""),
    *table(EDITS, """
--set nosuch | there are no edits 'nosuch'
--set {text} | line 1 is no JSON
--set {empty} | line 1 is no JSON
--set {picture} | cannot read the edits
--set {folder} | is no folder of PIE-Bench
--first 0 | choose 1 to 210
--methods nosuch | no method is called
--methods alignedgen | no method is called
--methods consistedit:alpha=2 | alpha
--methods consistedit:region=car | region
--methods consistedit:threshold=1 | threshold
--methods consistedit:region=judged;threshold=0.1 | a threshold is of words
--methods inpaint:region=everywhere | keep keeps
--methods inpaint:keep=false | no setting 'keep'
--methods plain --sweep threshold=0.1 | none of the methods
--methods plain --baseline copy | no method 'copy'
"""),
    *table(MASKS, """
--scenes 0 | --scenes
--steps 0 | num_inference_steps
--model nosuch | there is no model
--artwork no.npz | there is no artwork
--out {used} | exists already
"""),
    (["eval"], ""),
    (["nosuch"], "No such command"),
    (["--bogus"], "No such option"),
    (["embedded", "train", "nosuch"], "is unknown"),
    (["embedded", "export", "nosuch"], "is unknown"),
    (["embedded", "nosuch"], "No such command"),
]  # fmt: skip
