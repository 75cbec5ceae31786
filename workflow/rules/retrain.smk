rule retrain:
    input:
        data=[rules.prepare_data.output, rules.encode_latents.output, rules.encode_prompts.output],
        teacher=rules.train_teacher.output.model,
        architecture=rules.assemble.output.architecture,
        search=rules.collect_search.input.weights,
        autoencoder=rules.encode_latents.input.autoencoder,
        code=find_code("retrain"),
    output:
        model=name_student("results/student"),
        history="results/logs/retrain.json",
    log:
        "logs/retrain/retrain.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=1440,
        gpu=count_gpus(),
        processes=count_processes,
    params:
        config=select_params("retrain"),
    shell:
        "python -m stages.retrain --params {params.config:q} --threads {threads} --processes {resources.processes} "
        "--data data/prepared --latents data/latents --prompts data/prompts --autoencoder results/autoencoder --teacher results/teacher "
        "--architecture {input.architecture:q} --search results/search "
        "--output results/student --log {output.history:q} "
        "2>&1 | tee {log:q}"
