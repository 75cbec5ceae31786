rule train_teacher:
    input:
        data=rules.prepare_data.output,
        given=find_teacher(),
        code=find_code("train_teacher"),
    output:
        model=[
            "results/teacher/model_index.json",
            "results/teacher/unet/config.json",
            "results/teacher/unet/diffusion_pytorch_model.safetensors",
            "results/teacher/scheduler/scheduler_config.json",
            "results/teacher/params.json",
            "results/teacher/sha256.json",
        ],
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
        "--data data/prepared --output results/teacher --log {output.history:q} "
        "2>&1 | tee {log:q}"
