rule train_extractor:
    input:
        data=rules.prepare_data.output,
        code=find_code("train_extractor"),
    output:
        weights="results/extractor.safetensors",
        history="results/logs/train_extractor.json",
    log:
        "logs/train_extractor/train_extractor.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 8
    resources:
        mem_mb=8000,
        runtime=240,
        gpu=count_gpus(),
    params:
        config=select_params("train_extractor"),
    shell:
        "python -m stages.train_extractor --params {params.config:q} --threads {threads} "
        "--data data/prepared --output {output.weights:q} --log {output.history:q} "
        "2>&1 | tee {log:q}"
