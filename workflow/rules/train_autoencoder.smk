rule train_autoencoder:
    input:
        data=rules.prepare_data.output,
        given=find_autoencoder(),
        code=find_code("train_autoencoder"),
    output:
        index="results/autoencoder/index.json",
        model=name_model("results/autoencoder") if runs_in_latents() else [],
        history="results/logs/train_autoencoder.json",
    log:
        "logs/train_autoencoder/train_autoencoder.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=1440,
        gpu=count_gpus() if runs_in_latents() else 0,
    params:
        config=select_params("train_autoencoder"),
    shell:
        "python -m stages.train_autoencoder --params {params.config:q} --threads {threads} "
        "--data data/prepared --output results/autoencoder --log {output.history:q} "
        "2>&1 | tee {log:q}"
