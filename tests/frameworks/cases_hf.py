"""Scripts over Transformers, Accelerate and PEFT, as people write them. Each returns what the other kind of run must return too."""

import accelerate
import peft
import torch
import transformers
from models import Sentences, llama, llama_config, t5
from transformers import Trainer, TrainerCallback, TrainingArguments


def training_arguments(kind=TrainingArguments, **more):
    settings = dict(
        output_dir="out",
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        max_steps=6,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        learning_rate=1e-3,
        weight_decay=0.1,
        disable_tqdm=True,
    )
    return kind(**(settings | more))


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def norms(trainer):
    return [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]


def is_sluice(trainer):
    return type(trainer.model_wrapped).__module__.startswith("sluice.")


def train(deepspeed=None, own_optimizer=False, schedule=None, **more):
    """Trainer: train, evaluate. own_optimizer: what a configured optimizer does, where there is none."""
    if schedule:
        more["lr_scheduler_type"] = schedule
    model = llama()
    arguments = training_arguments(deepspeed=deepspeed, **more)
    optimizers = (None, None)
    if own_optimizer and deepspeed is None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        optimizers = (optimizer, None)
    trainer = Trainer(model=model, args=arguments, train_dataset=Sentences(), eval_dataset=Sentences(8), optimizers=optimizers)
    trainer.train()
    found = {"losses": losses(trainer), "norms": norms(trainer), "evaluated": trainer.evaluate()["eval_loss"]}
    return found | {"sluice": is_sluice(trainer), "weights": weights(trainer.accelerator, trainer.model_wrapped)}


def weights(accelerator, model):
    state = accelerator.get_state_dict(model)
    return {name: float(value.double().square().sum()) for name, value in state.items()} if state else {}


def warmup(deepspeed=None):
    """A schedule of the configuration, or the same of Transformers'."""
    model = llama()
    arguments = training_arguments(deepspeed=deepspeed, warmup_steps=2, max_steps=6)
    optimizers = (None, None)
    if deepspeed is None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        rates = [0.0, 0.0, 0.5, 1.0, 0.75, 0.5, 0.25]  # WarmupDecayLR: where it starts, then its iterations from 0 on
        optimizers = (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[step]))
    trainer = Trainer(model=model, args=arguments, train_dataset=Sentences(), optimizers=optimizers)
    trainer.train()
    return {"losses": losses(trainer), "sluice": is_sluice(trainer)}


def evaluate_first(deepspeed=None):
    """Trainer: evaluate, then another Trainer over the same model: train; and once more."""
    model = llama()
    found = []
    for steps in (0, 3, 3):
        arguments = training_arguments(deepspeed=deepspeed, max_steps=max(1, steps))
        trainer = Trainer(model=model, args=arguments, train_dataset=Sentences(), eval_dataset=Sentences(8))
        if steps:
            trainer.train()
        found += [*losses(trainer), trainer.evaluate()["eval_loss"]]
    return {"losses": found, "sluice": is_sluice(trainer)}


def trained_twice(deepspeed=None):
    """train() twice, with model_init."""
    trainer = Trainer(
        model_init=lambda: llama(), args=training_arguments(deepspeed=deepspeed, max_steps=3), train_dataset=Sentences()
    )
    trainer.train()
    first = losses(trainer)
    trainer.train()
    return {"losses": first + losses(trainer), "sluice": is_sluice(trainer)}


def generate(deepspeed=None):
    """Seq2SeqTrainer, whose evaluation generates."""
    arguments = training_arguments(
        transformers.Seq2SeqTrainingArguments,
        deepspeed=deepspeed,
        predict_with_generate=True,
        generation_max_length=8,
        max_steps=3,
    )
    trainer = transformers.Seq2SeqTrainer(
        model=t5(),
        args=arguments,
        train_dataset=Sentences(),
        eval_dataset=Sentences(8),
        compute_metrics=lambda found: {"sum": float(abs(found.predictions).sum())},
    )
    trainer.train()
    found = trainer.evaluate()
    return {"losses": [*losses(trainer), found["eval_loss"]], "words": found["eval_sum"], "sluice": is_sluice(trainer)}


class Rates(TrainerCallback):
    def __init__(self):
        self.rates = []

    def on_step_end(self, args, state, control, lr_scheduler=None, **more):
        self.rates.append(lr_scheduler.get_last_lr()[0])


def built_under_stage_3(deepspeed=None, folder=None):
    """from_pretrained and from_config where the configuration says stage 3: under zero.Init."""
    arguments = training_arguments(deepspeed=deepspeed, max_steps=3)  # first: it tells Transformers of stage 3
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    counted = Rates()
    trainer = Trainer(model=model, args=arguments, train_dataset=Sentences(), callbacks=[counted])
    trainer.train()
    torch.manual_seed(3)
    other = transformers.AutoModelForCausalLM.from_config(llama_config(1))
    finite = all(bool(torch.isfinite(p).all()) for p in other.parameters())
    found = {"losses": losses(trainer), "rates": counted.rates, "finite": finite, "sluice": is_sluice(trainer)}
    return found


def save_pretrained(folder):
    llama(5).save_pretrained(folder)
    return {}


def loop(deepspeed=None, clip=0.5):
    """A bare loop of Accelerate's: evaluate, train, evaluate, train."""
    accelerate.PartialState(cpu=True)  # ranks on CPUs; Accelerator(cpu=True) would leave DeepSpeed out
    plugin = accelerate.DeepSpeedPlugin(hf_ds_config=deepspeed) if deepspeed else None
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=2, deepspeed_plugin=plugin)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Linear(64, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    ranks = accelerator.num_processes
    make = torch.Generator().manual_seed(1)
    data = [(torch.randn(8, generator=make), torch.randn(4, generator=make)) for _ in range(32)]
    loader = torch.utils.data.DataLoader(data, batch_size=4 // ranks)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    losses, norms = [], []

    def evaluate():
        model.eval()
        with torch.no_grad():
            found = [accelerator.gather(torch.nn.functional.mse_loss(model(x), y)).mean().item() for x, y in loader]
        model.train()
        return sum(found)

    for _ in range(2):
        losses.append(evaluate())
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = torch.nn.functional.mse_loss(model(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), clip)
                    norms.append(None if norm is None else float(norm))
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            losses.append(accelerator.gather(loss.detach()).mean().item())
    plain = accelerator.unwrap_model(model)
    total = sum(float(p.detach().double().sum()) for p in plain.parameters())
    rate = optimizer.param_groups[0]["lr"]
    wrapped = type(model).__module__.startswith("sluice.")
    found = {"losses": losses, "norms": norms, "total": total, "rate": rate, "kind": type(plain).__name__, "sluice": wrapped}
    return found | {"weights": weights(accelerator, model)}


def adapters(deepspeed=None):
    """PEFT: LoRA with modules_to_save, trained by the Trainer, merged."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"], lora_dropout=0.0)
    torch.manual_seed(1)
    model = peft.get_peft_model(llama(), config)
    trainer = Trainer(model=model, args=training_arguments(deepspeed=deepspeed, learning_rate=1e-2), train_dataset=Sentences())
    trainer.train()
    found = {"losses": losses(trainer), "sluice": is_sluice(trainer), "counts": list(model.get_nb_trainable_parameters())}
    ids = Sentences()[3]["input_ids"][None]
    model.eval()
    with torch.no_grad():
        before = model(input_ids=ids).logits
    merged = trainer.accelerator.unwrap_model(trainer.model_wrapped).merge_and_unload()
    with torch.no_grad():
        after = merged(input_ids=ids).logits
    found["merged"] = float((after - before).abs().max())
    return found | {"logits": float(after.double().square().sum()), "kind": type(merged).__name__}


def saved_model(deepspeed=None, folder=None):
    """Trainer.save_model(), and what plain Transformers reads of it."""
    trainer = Trainer(model=llama(), args=training_arguments(deepspeed=deepspeed, max_steps=3), train_dataset=Sentences())
    trainer.train()
    trainer.save_model(folder)
    return {"losses": losses(trainer), "sluice": is_sluice(trainer)}


def loss_of_saved(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        items = [Sentences()[n] for n in range(4)]
        batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        return {"loss": float(model(**batch).loss)}


def resumed(deepspeed=None, schedule="linear", **more):
    """Trainer: train and save every 2 steps; another Trainer over another model goes on from step 4."""
    found = []
    for start in (None, "out/checkpoint-4"):
        arguments = training_arguments(
            deepspeed=deepspeed, save_strategy="steps", save_steps=2, save_total_limit=2, lr_scheduler_type=schedule, **more
        )
        trainer = Trainer(model=llama(0 if start is None else 3), args=arguments, train_dataset=Sentences())
        trainer.train(resume_from_checkpoint=start)
        found.append(losses(trainer))
    end = weights(trainer.accelerator, trainer.model_wrapped)
    return {"losses": found[0], "again": found[1], "weights": end, "sluice": is_sluice(trainer)}


def best_at_end(deepspeed=None):
    """Trainer: the model of the worst evaluation, the first, is what there is at the end."""
    arguments = training_arguments(
        deepspeed=deepspeed, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=True,
    )  # fmt: skip
    trainer = Trainer(model=llama(), args=arguments, train_dataset=Sentences(), eval_dataset=Sentences(8))
    trainer.train()
    best = trainer.state.best_model_checkpoint.rpartition("-")[2]
    return {"losses": losses(trainer), "best": best, "evaluated": trainer.evaluate()["eval_loss"], "sluice": is_sluice(trainer)}


def saved_state(deepspeed=None):
    """Accelerate: save_state amid a loop, and load_state, after which all comes again."""
    accelerate.PartialState(cpu=True)
    plugin = accelerate.DeepSpeedPlugin(hf_ds_config=deepspeed) if deepspeed else None
    accelerator = accelerate.Accelerator(deepspeed_plugin=plugin)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    make = torch.Generator().manual_seed(1)
    data = [(torch.randn(8, generator=make), torch.randn(4, generator=make)) for _ in range(16)]
    loader = torch.utils.data.DataLoader(data, batch_size=4 // accelerator.num_processes)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    model.train()

    def epoch():
        found = []
        for x, y in loader:
            loss = torch.nn.functional.mse_loss(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            found.append(accelerator.gather(loss.detach()).mean().item())
        return [*found, optimizer.param_groups[0]["lr"]]

    torch.manual_seed(5 + accelerator.process_index)
    first = epoch()
    accelerator.save_state("state")
    after = epoch()
    accelerator.load_state("state")
    again = epoch()
    wrapped = type(model).__module__.startswith("sluice.")
    return {"losses": first + after, "again": again, "same": float(again == after), "sluice": wrapped}
