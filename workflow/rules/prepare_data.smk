rule prepare_data:
    input:
        code=find_code("prepare_data"),
    output:
        images="data/prepared/images.npy",
        labels="data/prepared/labels.npy",
        meta="data/prepared/meta.json",
    log:
        "logs/prepare_data/prepare_data.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 8
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        config=select_params("prepare_data"),
        source=fingerprint_source(),
    shell:
        "python -m stages.prepare_data --params {params.config:q} --threads {threads} "
        "--output data/prepared "
        "2>&1 | tee {log:q}"
