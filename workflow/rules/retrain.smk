rule retrain:
    input:
        data=rules.prepare_data.output,
        teacher=rules.train_teacher.output.model,
        architecture=rules.assemble.output.architecture,
        search=rules.search.input.weights,
        code=find_code("retrain"),
    output:
        model=[
            "results/student/model_index.json",
            "results/student/unet/config.json",
            "results/student/unet/diffusion_pytorch_model.safetensors",
            "results/student/unet/multi_decoder_unet.py",
            "results/student/scheduler/scheduler_config.json",
            "results/student/params.json",
            "results/student/sha256.json",
        ],
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
        "--data data/prepared --teacher results/teacher --architecture {input.architecture:q} --search results/search "
        "--output results/student --log {output.history:q} "
        "2>&1 | tee {log:q}"
