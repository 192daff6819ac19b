r"""Kahneman-Tversky optimisation with TRL, on an export of the format `kto`.

    negtemp export out/quickstart out/kto --format kto
    python jobs/train/kto.py --dataset_name out/kto --output_dir out/kto-model \
        --model_name_or_path smollm2-135m-instruct

On a CPU as on GPUs (`accelerate launch` for several). Every option of TRL's KTOConfig and
ModelConfig can be given: `--use_peft` trains a LoRA, `--max_steps 20` tries it out,
`--eval_strategy steps` evaluates on the split `test`, if the export has one.
"""

import torch
from datasets import load_dataset
from trl import KTOConfig, KTOTrainer, ModelConfig, ScriptArguments, TrlParser, get_peft_config

from negtemp_data.engine.catalogue import resolve_model


def main() -> None:
    parser = TrlParser((ScriptArguments, KTOConfig, ModelConfig))
    # TRL's default is bfloat16, which CPUs are slow in, if they have it.
    parser.set_defaults(bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    script, config, model = parser.parse_args_and_config()
    data = load_dataset(script.dataset_name)
    config.model_init_kwargs = {"dtype": model.dtype, **(config.model_init_kwargs or {})}
    trainer = KTOTrainer(
        model=resolve_model(model.model_name_or_path).path,
        args=config,
        train_dataset=data[script.dataset_train_split],
        eval_dataset=None if config.eval_strategy == "no" else data[script.dataset_test_split],
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
