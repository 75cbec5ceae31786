rule train_teacher:
    input:
        data=[rules.prepare_data.output, rules.encode_latents.output, rules.encode_prompts.output],
        given=find_teacher(),
        autoencoder=rules.encode_latents.input.autoencoder,
        code=find_code("train_teacher"),
    output:
        model=name_pipeline("results/teacher"),
        history="results/logs/train_teacher.json",
    log:
        "logs/train_teacher/train_teacher.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=1440,
        gpu=count_gpus(),
        processes=count_processes,
    params:
        config=select_params("train_teacher"),
    shell:
        "python -m stages.train_teacher --params {params.config:q} --threads {threads} --processes {resources.processes} "
        "--data data/prepared --latents data/latents --prompts data/prompts --autoencoder results/autoencoder --output results/teacher --log {output.history:q} "
        "2>&1 | tee {log:q}"
