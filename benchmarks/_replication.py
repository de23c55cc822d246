"""Every run behind the replication page: `make replication DATA=DIR`, days on two CPU cores; a killed one resumes.

Each run is one command of the package; its JSON goes to `results/replication/<name>/`, or to `results/<name>/` where
the name has a folder of its own (`NAMES=nlu/mrpc`), numbers only. Runs share codec, calibrations and controls in
one store, so that one more (`NAMES=bits-1`) costs little once others are done. What takes a CPU days is left out where
there is no GPU, unless it is named.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from del_lightning.stages.report import slug_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "replication"

SMALL = ["methods=[clean,mean,del]", "soft_prompts=[clean,mean,del]", "evaluate.seeds=[0,1,2]", "attack.prompts=64"]
PTB = ["experiment=leaderboard/ptb", *SMALL, "matching=[nearest]"]

CNN = ["experiment=leaderboard/ptb", "data=cnn_dailymail", "data.prompt_words=50", "data.min_words=120"]

NEAREST = (
    "methods=[clean,mean,del,gaussian-code,metric-dp,dp-forward,santext,santext-plus,custext,custext-plus,"
    "rantext,inferdpt]"
)
"""What the paper's tables compare by the nearest neighbour's success."""

PLUS = ["experiment=del_plus", "attack.tuning_prompts=16"]

SEARCH = [*PLUS, "unprompted=true", "data.max_prompts=64", "mechanism.mu=20", "codebook.last=0"]

PLUS_AT = (
    ("ptb", 0.2, 14, "", 0.01, 2, 3),
    ("ptb", 0.3, 24, "", 0.03, 2, 3),
    ("ptb", 0.4, 44, "", 0.12, 2, 3),
    ("wikitext2", 0.2, 12, "", 0.03, 2, 3),
    ("wikitext2", 0.3, 20, "", 0.07, 2, 3),
    ("wikitext2", 0.4, 34, "", 0.17, 2, 3),
    ("ptb", 0.2, 14, "-alike", 0.04, 0, 1),
    ("ptb", 0.4, 44, "-alike", 0.3, 0, 1),
    ("wikitext2", 0.2, 12, "-alike", 0.04, 0, 1),
    ("wikitext2", 0.4, 34, "-alike", 0.3, 0, 1),
)
"""Data, DEL's success, mu, kind, largest share of a group, last tokens with groups of their own, seeds.

The two at .3 lie midway between their neighbours (mu and share, on log scales) and were fixed before they were run.
"""


def _plus(corpus: str, mu: float, share: float, last: int, seed: int) -> list[str]:
    setting = [f"data={corpus}", f"seed={seed}", f"mechanism.mu={mu}"]
    return [*PLUS, *setting, f"codebook.largest_share={share}", f"codebook.last={last}"]


PARTS = {
    "posterior": ["methods=[clean,mean,del,del-posterior]"],
    "one-by-one": ["codebook.neighbours=false"],
    "no-adapter": ["adapter.rank=0"],
    "one-bit": ["mechanism.bits=1"],
    "end-alone": ["codebook.frequent=0", "codebook.largest_share=0.0001"],
    "bounded": ["codebook.last=4", "codebook.last_alone=0", "codebook.last_share=0.25"],
}
"""What each part of DEL+ gives: without it, or it alone; and last tokens that share their code words."""

SEEDS: dict[str, list[str]] = {"": [], "-seed-1": ["seed=1"], "-seed-2": ["seed=2"]}
"""End of a run's name -> its seed; 0 where none is named."""

SUITE = (
    "attack.suite=[nearest,nearest-l2,nearest-code,bayes,bigrams,language-model,server-model,input-inference,inverter]",
    "attack.tuning_prompts=64",
)
"""Every attacker, and enough validation prompts for those that tune how far they trust a language model."""

JOBS: dict[str, list[str]] = {
    # Bits a coordinate, at one success of the nearest neighbour.
    **{
        f"bits-{bits}{again}": [*PTB, "targets=[0.1]", f"mechanism.bits={bits}", *seed]
        for again, seed in SEEDS.items()
        for bits in (1, 2, 4, 8)
    },
    # Table 8: width of the code at a strict and at a loose mu.
    **{
        f"width-{dim}-mu-{mu}{again}": [*PTB, f"codec.dim={dim}", f"mechanism.mu={mu}", *seed]
        for again, seed in SEEDS.items()
        for dim in (18, 128)
        for mu in (20, 60)
    },
    # Tables 6 and 7: soft prompts from other data and from another mu.
    **{
        f"transfer-{corpus}{again}": [*settings, "stage=transfer", *seed]
        for again, seed in SEEDS.items()
        for corpus, settings in (
            ("ptb", PTB),
            ("wikitext2", ["experiment=leaderboard/wikitext2", *SMALL]),
            ("cnn-dailymail", [*CNN, *SMALL]),
        )
    },
    # Table 1's third data set, with the Gaussian mechanism of Fig. 3 beside DEL.
    "cnn-dailymail": [
        *CNN,
        "methods=[clean,mean,del,gaussian-code,metric-dp,rantext]",
        "soft_prompts=[clean,mean,del,gaussian-code,metric-dp]",
        *("evaluate.seeds=[0,1,2]", "matching=[nearest]"),
    ],
    **{
        f"cnn-dailymail-seed-{seed}": [
            *(*CNN, *SMALL, f"seed={seed}", "targets=[0.1]", "matching=[nearest]"),
            *("methods=[clean,mean,del,gaussian-code]", "soft_prompts=[clean,mean,del,gaussian-code]"),
        ]
        for seed in (0, 1, 2)
    },
    # The headline comparison with every part trained anew under each seed.
    **{
        f"{corpus}-seed-{seed}": [
            *(f"experiment=leaderboard/{corpus}", f"seed={seed}", "targets=[0.1]", "matching=[nearest]"),
            "methods=[clean,mean,del,gaussian-code,metric-dp,rantext]",
            "soft_prompts=[clean,mean,del,gaussian-code]",
            *("evaluate.seeds=[0,1,2]", "attack.prompts=64"),
        ]
        for corpus in ("ptb", "wikitext2")
        for seed in (0, 1, 2)
    },
    # Every method, a level at a time: hours each, and their boards become one.
    **{
        f"levels/{corpus}-asr{target}": [f"experiment=leaderboard/{corpus}", f"targets=[{target}]"]
        for corpus in ("ptb", "wikitext2")
        for target in (0.02, 0.1, 0.15)
    },
    # Tables 1, 2, 5 and 9 at the levels and on the data that no board of every method has.
    **{
        f"nearest-{corpus}": [*settings, NEAREST, "soft_prompts=[clean,mean,del,gaussian-code]", "matching=[nearest]"]
        for corpus, settings in (
            ("ptb", ["experiment=leaderboard/ptb", "targets=[0.02,0.15]"]),
            ("wikitext2", ["experiment=leaderboard/wikitext2", "targets=[0.02,0.15]"]),
            ("cnn-dailymail", [*CNN, "targets=[0.02,0.1,0.15]"]),
        )
    },
    # The paper's soft prompt, 100 tokens and 4000 steps, where there is a GPU.
    **{
        f"gpu-{corpus}-seed-{seed}": [f"experiment=gpu/{corpus}", f"seed={seed}"]
        for corpus in ("ptb", "wikitext2")
        for seed in (0, 1, 2)
    },
    # A second language model. Its vocabulary is five times as large, and so are the logits of a batch; its embeddings
    # are 7.6 times as large (root mean square 1.03 against .136), and so are the steps of its soft prompt.
    "gemma-3-270m": [
        *PTB, "model=gemma3", "prompt.learning_rate=0.15", "targets=[0.1]", "methods=[clean,mean,del,gaussian-code]",
        *("soft_prompts=[clean,mean,del,gaussian-code]", "data.eval_batch_size=4", "evaluate.generation_batch_size=16"),
    ],
    # Tables 3 and 4.
    "nlu/sst2": ["experiment=cpu/sst2"],
    "nlu/sst2-8-bits": ["experiment=cpu/sst2", "nlu.ways=[linear,prompt,snd,snd-prompt]",
                        "nlu.fronts=[clean,mean,del@8]", "nlu.fronts_of.snd-prompt=[clean,mean,del@8]"],
    # Whether more training helps: one pass over 3200 examples for soft prompts, two for denoisers, as SnD draws noise
    # twice. Behind clean text there is nothing to denoise.
    "nlu/sst2-longer": [
        *("experiment=cpu/sst2", "targets=[0.15]", "nlu.ways=[linear,prompt,snd]", "nlu.fronts=[clean,mean,del@4]"),
        *("+nlu.fronts_of.snd=[mean,del@4]", "nlu.train_examples=3200", "nlu.selection_examples=256"),
        *("prompt.steps=200", "prompt.batch_size=16", "prompt.warmup_steps=20", "prompt.validate_every=40"),
        *("nlu.denoiser.steps=400", "nlu.denoiser.batch_size=16", "nlu.denoiser.warmup_steps=20"),
        *("nlu.denoiser.validate_every=40", "trainer.checkpoint_every=100"),
        "schedule='3200 training examples a seed, 200 steps of 16 for soft prompts and 400 for denoisers, 256 reported "
        "examples, sentences cut to 40 tokens'",
    ],
    # More of GLUE, end to end at one level: the task that has a figure of its own.
    "nlu/cola": [
        *("experiment=cpu/nlu", "nlu.task=cola", "targets=[0.1]"),
        *("nlu.ways=[linear,prompt]", "nlu.fronts=[clean,mean,del@4]"),
        *("nlu.train_examples=1920", "nlu.eval_examples=1043", "prompt.steps=60", "prompt.batch_size=16"),
        "schedule='1920 training examples and 60 steps of 16 a seed, all 1043 examples reported, cut to 40 tokens'",
    ],
    "nlu/mrpc": ["experiment=gpu/mrpc"],
    "nlu/qqp": ["experiment=gpu/qqp"],
    # All three levels, for what cpu/pairs names of the ways and front-ends: hours on two CPU cores. MRPC's heads take
    # three times QQP's examples, and so a run a seed; tables show them as one.
    "nlu/qqp-levels": ["experiment=cpu/qqp"],
    "nlu/mrpc-levels-seed-0": ["experiment=cpu/mrpc", "nlu.seeds=[0]"],
    **{
        # A joined table has the attacks of its first seed.
        f"nlu/mrpc-levels-seed-{seed}": ["experiment=cpu/mrpc", f"nlu.seeds=[{seed}]", "attack.suite=[nearest]"]
        for seed in (1, 2)
    },
    # DEL+ beside DEL at one guarantee, everything trained anew under each seed. DEL is read at about the rate named;
    # DEL+ has its budget where it matters, or ("alike") the same groups at every place.
    **{
        f"del_plus/{corpus}-asr{rate}{kind}-seed{seed}": _plus(corpus, mu, share, last, seed)
        for corpus, rate, mu, kind, share, last, seeds in PLUS_AT
        for seed in range(seeds)
    },
    **{f"del_plus/ptb-asr0.2-{name}-seed0": [*_plus("ptb", 14, 0.01, 2, 0), *part] for name, part in PARTS.items()},
    # The same trained parts on prompts and noise that nothing was chosen on.
    **{
        f"del_plus/anew/{corpus}-asr{rate}": [
            *_plus(corpus, mu, share, last, 0),
            *("data.first_prompt=2", "evaluate.seeds=[1]", "attack.tuning_prompts=64"),
        ]
        for corpus, rate, mu, kind, share, last, _ in PLUS_AT
        if not kind
    },
    # Every attacker on the soft prompts of the first seed.
    **{
        f"del_plus/attacks/{corpus}-asr{rate}": [*_plus(corpus, mu, share, last, 0), "methods=[del,del-plus]", *SUITE]
        for corpus, rate, mu, kind, share, last, _ in PLUS_AT
        if not kind
    },
    # Earlier searches.
    **{
        f"del_plus/wikitext2-mu20-seed{seed}": [*SEARCH, f"seed={seed}", "codebook.largest_share=0.2"]
        for seed in (0, 1, 2)
    },
    "del_plus/ptb-mu14-frequent512-seed0": [
        *(*SEARCH, "data=ptb", "seed=0", "mechanism.mu=14", "codebook.largest_share=0.1", "codebook.frequent=512"),
    ],
    **{
        f"del_plus/ptb-mu20-share0.1-seed{seed}": [*SEARCH, "data=ptb", "codebook.largest_share=0.1", f"seed={seed}"]
        for seed in (0, 1, 2)
    },
}  # fmt: skip
"""Name of a run -> its settings besides data and store."""

NEED_GPU = ("nlu/mrpc", "nlu/qqp", *(name for name in JOBS if name.startswith("gpu-")))
"""Runs that take a CPU days."""


TITLES = {
    **{
        f"levels/{corpus}-asr{target}": f"{name} (CPU schedule), ASR {target}"
        for corpus, name in (("ptb", "PTB"), ("wikitext2", "WikiText-2"))
        for target in (0.02, 0.1, 0.15)
    },
    **{
        f"gpu-{corpus}-seed-{seed}": f"{name} (one GPU), seed {seed}"
        for corpus, name in (("ptb", "PTB"), ("wikitext2", "WikiText-2"))
        for seed in (0, 1, 2)
    },
    "nlu/cola": "CoLA (CPU schedule)",
    "nlu/sst2": "SST-2 (CPU schedule)",
    "nlu/sst2-8-bits": "SST-2 at 8 bits (CPU schedule)",
    "nlu/sst2-longer": "SST-2, trained for longer",
    "nlu/mrpc": "MRPC (one GPU)",
    "nlu/qqp": "QQP (one GPU)",
    **{f"nlu/mrpc-levels-seed-{seed}": f"MRPC at three levels, seed {seed}" for seed in range(3)},
    "nlu/qqp-levels": "QQP at three levels",
}
"""Titles that say more than a run's name."""


def title(name: str) -> str:
    """Title of a run's report; the folder of the report is named after it."""
    return TITLES.get(name, f"Replication {name}")


def settings_of(name: str) -> list[str]:
    """Settings of a run, its title among them (quoted: a title may hold what Hydra's grammar knows as its own).

    The type of the model's numbers is that of the committed results, whatever this machine is fastest in.
    """
    dtype = "float32" if name.startswith(("levels/", "nearest-")) else "bfloat16"
    return [*JOBS[name], f"model.dtype={dtype}", f"title='{title(name)}'"]


def run(name: str, data: str, store: Path) -> None:
    """Run one job, or what is missing of it, and take its JSON."""
    settings = [*settings_of(name), f"data.root={data}", f"out={store}"]
    if code := subprocess.run([sys.executable, "-m", "del_lightning", *settings], cwd=ROOT, check=False).returncode:
        sys.exit(code)  # what went wrong has been said
    folder = store / "report" / slug_of(title(name))
    target = RESULTS.parent / name if "/" in name else RESULTS / name
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.json"):
        if file.name != "texts.json":  # text of the data set stays out of the repository
            shutil.copyfile(file, target / file.name)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"runs, of {', '.join(JOBS)} (default: all)")
    parser.add_argument("--data", required=True, help="folder with the corpora as parquet files")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "replication", help="store of the artefacts")
    wanted = parser.parse_args()
    if not Path(wanted.data or "-").is_dir():
        parser.error(f"--data must be a folder with the corpora as parquet files, got {wanted.data!r}")
    if unknown := [name for name in wanted.names if name not in JOBS]:
        parser.error(f"name must be one of {', '.join(JOBS)}, got {unknown[0]!r}")
    names = wanted.names or [name for name in JOBS if name not in NEED_GPU or torch.cuda.is_available()]
    for number, name in enumerate(names, 1):
        print(f"== {number}/{len(names)} {name}", flush=True)
        run(name, str(Path(wanted.data).resolve()), wanted.out.resolve())


if __name__ == "__main__":
    main()
