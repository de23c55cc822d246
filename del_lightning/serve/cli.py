"""``del-lightning-client ask "..."``: see what a private prompt costs and gives away, then send it.

The preview goes to standard error and the answer to standard output. The API key is read from the environment variable
DEL_LIGHTNING_KEY, where no list of processes shows it.
"""

import argparse
import os
import sys
from pathlib import Path

from del_lightning.errors import DelError
from del_lightning.serve.bundle import Bundle
from del_lightning.serve.client import KEY_VARIABLE, Client, Preview, harmless, open_ledger
from del_lightning.serve.wishes import DEFAULT_NEW_TOKENS

CONTEXT = "An attacker who also uses the context reads more (on PTB at mu 20, 27% of the tokens against 19%)."
USER_ERROR, DECLINED, INTERRUPTED = 2, 1, 130


def main() -> None:
    """Run the command line; errors that are the user's to mend are one line and exit code 2."""
    try:
        sys.exit(_ask(parser().parse_args()))
    except DelError as error:
        print(harmless(f"error: {error}"), file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def parser() -> argparse.ArgumentParser:
    """What the command understands."""
    whole = argparse.ArgumentParser(
        prog="del-lightning-client", description="Send a prompt to a language model as a few noisy bits a token."
    )
    ask = whole.add_subparsers(dest="command", required=True).add_parser(
        "ask", help="send a private prompt and print the answer", description=__doc__
    )
    ask.add_argument("prompt", help="private text; - reads it from standard input, without the last line break")
    ask.add_argument("--bundle", type=Path, default=Path(), help="client folder of an export (default: this folder)")
    ask.add_argument("--url", default="http://127.0.0.1:8000", help="server (default: %(default)s)")
    ask.add_argument("--suffix", default="", help="public text behind the prompt")
    ask.add_argument("--user", default="me", help="whose privacy budget pays (default: %(default)s)")
    ask.add_argument("--ledger", type=Path, help="file of the privacy budget (default: in the user's data folder)")
    ask.add_argument("--budget", type=float, metavar="EPSILON", help="privacy budget (default: the bundle's)")
    limit = f"longest answer (default: {DEFAULT_NEW_TOKENS}, or the server's limit if that is lower)"
    ask.add_argument("--max-tokens", type=int, help=limit)
    ask.add_argument(
        "--temperature", type=float, default=0.7, help="0 takes the likeliest token (default: %(default)s)"
    )
    ask.add_argument("--top-p", type=float, default=0.9, help="(default: %(default)s)")
    ask.add_argument("--seed", type=int, help="of the server's sampling (default: random)")
    ask.add_argument("--entropy-coding", action="store_true", help="shorter requests; needs constriction")
    ask.add_argument("--yes", action="store_true", help="send without asking")
    return whole


def _ask(arguments: argparse.Namespace) -> int:
    bundle = Bundle(arguments.bundle)
    prompt = sys.stdin.read().removesuffix("\n") if arguments.prompt == "-" else arguments.prompt
    with Client(
        bundle,
        arguments.url,
        key=os.environ.get(KEY_VARIABLE),
        user=arguments.user,
        ledger=open_ledger(bundle.manifest, arguments.ledger, arguments.budget),
        entropy_coding=arguments.entropy_coding,
    ) as client:
        preview = client.prepare(prompt, suffix=arguments.suffix)
        print(harmless(describe(preview, bundle, prompt)), file=sys.stderr)
        if not (arguments.yes or _confirmed()):
            print("Nothing was sent.", file=sys.stderr)
            return DECLINED
        pieces = client.send(
            preview,
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            seed=arguments.seed,
        )
        for piece in pieces:
            print(harmless(piece.text), end="", flush=True)
        print()
    return 0


def describe(preview: Preview, bundle: Bundle, prompt: str) -> str:
    """The preview in a few lines."""
    manifest, total = bundle.manifest, preview.total
    lines = {
        "tokens": f"{preview.tokens}: {'|'.join(preview.pieces)}",
        "request": f"{preview.frame_bytes} bytes (the text itself has {len(prompt.encode())})",
        "privacy": f"this request epsilon {preview.epsilon:.4g}; {total.tokens} tokens in total epsilon "
        f"{total.epsilon:.4g} of {preview.budget:.4g}; delta {total.delta:g}",
        "attack": f"the best attack on single tokens, given word frequencies, names {preview.recovered} of "
        f"{preview.tokens} tokens in a rehearsal: {bundle.text(preview.guesses)!r}",
        "": CONTEXT,
        "server": f"{manifest.model_name}, {manifest.label}, setting {manifest.setting}",
    }
    return "\n".join(f"{name:8} {value}" for name, value in lines.items())


def _confirmed() -> bool:
    """Ask on the terminal; whoever cannot be asked has not agreed."""
    if not sys.stdin.isatty():
        print("Standard input is no terminal: add --yes to send without being asked.", file=sys.stderr)
        return False
    print("Send? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
