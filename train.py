"""Trains a model: python train.py MODEL[:PRESET] [--data FOLDER ...] [--out FOLDER] [--steps N] [--model.FIELD VALUE]

The same command again continues the run. `python train.py MODEL --help` lists every option.
"""

import contextlib
import dataclasses
import sys
import time
from pathlib import Path

import jax
import tyro

from jaxaudio import zoo
from jaxaudio.core import InputError, Model
from jaxaudio.data.clips import fetcher
from jaxaudio.data.pack import cache_folder
from jaxaudio.runtime import command, folder, hosts, report
from jaxaudio.runtime.log import Diverged, Log
from jaxaudio.runtime.mirror import Mirror
from jaxaudio.runtime.parallel import Devices
from jaxaudio.runtime.population import Population, spread
from jaxaudio.runtime.profile import Profile
from jaxaudio.runtime.versions import versions
from jaxaudio.tasks import generate
from jaxaudio.training import material
from jaxaudio.training.member import Member, latest
from jaxaudio.training.run import Run


def train(run: Run) -> int:
    """Trains to the end, a signal or divergence; the exit code. The run's folder is its own for as long."""
    with contextlib.ExitStack() as held:
        devices = Devices(run.parallel, fsdp=run.fsdp)
        devices.rows(run.model.batch_size)
        return train_on(devices, *started(run, devices, held))


def train_on(devices: Devices, members: list[Member], mirror: Mirror | None) -> int:
    """The same of the seeds of a run, one in most of them."""
    run, model, out = members[0].run, members[0].model, members[0].run.out
    start = latest(members)
    states = tuple(member.state(start) for member in members)
    announce(members, start, devices)
    if start >= run.steps:
        print(f"{out} is finished ({start} steps): give a larger --steps to train on")
        if mirror:
            mirror.finish()
        return command.DONE

    step = devices.compile(Population(model, [member.seed for member in members]))
    fetch = fetcher([member.clips for member in members], devices, run.where)
    log = Log(out if hosts.first() else None, start, run.steps, run.log_every, run.patience)
    seconds = model.batch_size * model.segment / model.sample_rate * len(members)
    ending, kept = "", start
    with command.Signals() as signals, Profile(run.profile, out) as profile:
        try:
            for i in range(start, run.steps):
                profile.step(i - start, log)
                began = time.perf_counter()
                batches = fetch(i)
                waited = 0.0 if log.busy() else time.perf_counter() - began
                keys = tuple(jax.random.fold_in(member.step_key, i) for member in members)
                states, metrics = step(states, batches, keys, model.stage(i))
                log.add(i + 1, metrics, seconds, waited)
                due = (i + 1) % run.eval_every == 0 or i + 1 == run.steps
                if due or (i + 1) % run.save_every == 0:
                    with log.paused():
                        keep(i + 1, members, states, mirror, log if due else None)
                    kept = i + 1
                if (stop := signals.caught or hosts.stopping(i + 1)) and i + 1 < run.steps:
                    ending = f"stopped by {stop}"
                    break
            log.drain()
        except Diverged as reason:
            ending = str(reason)
        except jax.errors.JaxRuntimeError as problem:
            raise devices.out_of_memory(problem, model, members[0].like) or problem from problem
        except OSError as problem:
            raise InputError(
                f"{out} can't be written ({problem.strerror}): make room; the same command continues"
            ) from problem
        finally:
            wait(members)  # whatever ended the loop
    done = int(states[0].step)
    if ending and kept < done:
        keep(done, members, states, mirror, None)
        wait(members)
    log.close()
    if hosts.first():
        report.write(out)
        if mirror:
            mirror.finish()
        if ending:
            print(f"train.py: {ending}; saved at step {done}: the same command continues from {out}")
        else:
            print(f"done: {run.steps} steps -> {out}")
    return command.STOPPED if ending else command.DONE


def keep(step: int, members: list[Member], states: tuple, mirror: Mirror | None, log: Log | None) -> None:
    """Saves; with a log for it, after numbers and sounds of held-out recordings."""
    scores = []
    for member, state in zip(members, states, strict=True):
        means, heard = member.examine(step, state) if log else ({}, None)
        member.saved.save(step, state, means or None)
        scores.append({f"valid/{name}": value for name, value in means.items()})
        if heard and member is members[0]:
            waves, sheet = heard
            log.media(step, waves, member.model.sample_rate, sheet)
    if mirror:
        mirror.copy(step)
    if scores[0]:
        together = {name: float(x) for name, x in spread(scores, [member.seed for member in members]).items()}
        log.write(step, together)
        log.say(f"step {step}: " + "  ".join(f"{name} {together[name]:.4g}" for name in scores[0]))
    if log and hosts.first() and step < members[0].run.steps:
        report.write(members[0].run.out)


def wait(members: list[Member]) -> None:
    """Until the saves that are under way have come to their ends, one that fails among them."""
    with contextlib.ExitStack() as stack:
        for member in members:
            stack.callback(member.saved.wait)


def started(run: Run, devices: Devices, held: contextlib.ExitStack) -> tuple[list[Member], Mirror | None]:
    """The seeds of a run, ready to train, and what copies it to a store; their folders are theirs for as long as `held`
    is open. On all hosts or none."""
    seeds = range(run.seed, run.seed + run.seeds)
    where = {seed: run.out / f"seed-{seed}" if len(seeds) > 1 else run.out for seed in seeds}
    read = hosts.everywhere(lambda: material.opened(run))
    members = hosts.everywhere(lambda: [Member(read, seed, where[seed], devices) for seed in seeds])
    own = "model", "process", "out", "data", "noise", "mels", "codec", "begin"  # of what is read, the content counts
    options = {each.name: getattr(run, each.name) for each in dataclasses.fields(run) if each.name not in own}
    hosts.agree({**zoo.dump(members[0].model), **options, **folder.identity(members[0].about), **versions()})

    def claim() -> Mirror | None:
        if len(members) > 1:
            about = members[0].about | {"seeds": len(members)}
            held.enter_context(folder.claim(run.out, members[0].model, about))
        for member in members:
            member.claim(held)
        if not run.store:
            return None
        names = [member.out.name for member in members] if len(members) > 1 else []
        return held.enter_context(Mirror(run.store, run.out, names, checkpoints=not members[0].direct))

    mirror = hosts.everywhere(lambda: claim() if hosts.first() else None)
    hosts.everywhere(lambda: None if members[0].direct else folder.shared(run.out))
    if hosts.first():
        members[0].introduce()
    for member in members:
        member.begin()
    return members, mirror


def announce(members: list[Member], start: int, devices: Devices) -> None:
    """Says what is trained from where on."""
    run, about = members[0].run, members[0].about
    counts = ", ".join(f"{name} {count:,}" for name, count in about["parameters"].items())
    begins = f"continues at step {start}" if start else "starts"
    if run.begin and not start:
        begins = f"starts with the networks of step {about['begin']['step']} of {run.begin}"
    many = f"{len(members)} seeds of " if len(members) > 1 else ""
    if hosts.first():
        print(f"{many}{zoo.name_of(run.model)}: parameters: {counts}; {begins} on {devices}", flush=True)


def refuse_ambiguous(name: str, arguments: list[str]) -> None:
    """Raises InputError where an option that takes folders has none, or comes twice: only the last would count."""
    places = [i for i, word in enumerate(arguments) if word == name or word.startswith(f"{name}=")]
    if len(places) > 1:
        raise InputError(f"{name} is there {len(places)} times: give it once, and all folders behind it")
    behind = [*arguments, "--"]
    if any(behind[i] == name and behind[i + 1].startswith("--") for i in places):
        raise InputError(f"{name} is followed by no folder: name one or more, or leave it away")


def refuse_filled_in(model: Model, default: Model) -> None:
    """Raises InputError where a field is given that the codec fills in."""
    for name in generate.FROM_CODEC if model.needs_codes else ():
        if getattr(model, name) != getattr(default, name):
            option = f"--model.{name.replace('_', '-')}"
            raise InputError(f"{name} is {getattr(model, name)}, but it is the codec's to say: leave {option} away")


def main(arguments: list[str]) -> int:
    """Reads the command line; the first word is the model."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        for name in zoo.names():
            print(f"  {name}: {', '.join(zoo.model_class(name).presets)}")
        return command.DONE if arguments and arguments[0] in ("-h", "--help") else command.WRONG_INPUT
    spec = arguments[0]
    for name in ("--data", "--noise"):
        refuse_ambiguous(name, arguments)
    default = Run(model=zoo.load(spec), out=Path("runs") / spec.replace(":", "-"))
    run = tyro.cli(Run, default=default, args=arguments[1:], prog=f"train.py {spec}", description=__doc__)
    refuse_filled_in(run.model, default.model)
    if run.distributed:
        code = hosts.watched(f"start the same command on all hosts again, it continues from {run.out}")
        if code is not None:
            return code
    command.prepare(cache_folder(), run.deterministic)
    if run.distributed:
        hosts.join(run.coordinator, run.processes, run.process, run.join_seconds, run.lost_seconds)
    return train(dataclasses.replace(run, steps=run.steps or run.model.steps))


if __name__ == "__main__":
    sys.exit(command.guarded(main, sys.argv[1:]))
