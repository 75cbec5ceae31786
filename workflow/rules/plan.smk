# `snakemake plan` looks at params and configs alone, so that it comes before images and weights.
rule plan:
    log:
        text="logs/plan/plan.log",
        figures="logs/plan/plan.json",
    localrule: True
    conda:
        "../envs/stagecraft.yaml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=10,
    params:
        config=lambda wildcards: json.dumps(config, sort_keys=True),
        gpu=lambda wildcards: json.dumps(GPU),
        cores=workflow.resource_settings.cores or 1,
    shell:
        "python -m stages.plan --params {params.config:q} --threads {threads} "
        "--cores {params.cores} --gpu {params.gpu:q} --figures {log.figures:q} "
        "> {log.text:q} 2>&1 && cat {log.text:q}"
