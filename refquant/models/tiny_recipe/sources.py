"""Where the text comes from: documentation that PyPI and Debian serve under permissive licences.

A source is a package and the registry it is fetched from with that registry's own client. `debian` is the upstream
source of a Debian package (`apt-get source`), `deb` a built documentation package (`apt-get download`), `pypi` a wheel
(`pip download`). Nothing is built or run. Packages whose documentation is under the GPL, LGPL, GFDL or MPL are left
out; of the few share-alike documents none gets into the token files, which so may be passed on under notices alone.
"""

import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BSD, MIT, APACHE, PSF = "BSD", "MIT", "Apache-2.0", "PSF-2.0"


@dataclass(frozen=True)
class Source:
    """One package: registry, name, licence, the file endings read from it, and the most text kept, in megabytes."""

    registry: str
    name: str
    licence: str
    endings: str = "rst txt md markdown pod pm html xml sgml py rb"
    cap: float = 8.0

    @property
    def key(self) -> str:
        """Folder and document prefix."""
        return f"{self.registry}/{self.name}"


# Packages whose licence differs from that of the group they are listed in.
_DIFFERS = {
    "guava-libraries": APACHE,
    "python-celery-doc": "CC-BY-SA-4.0",
    "python-dask-doc": BSD,
    "python-xarray-doc": APACHE,
    "rails": "MIT; guides CC-BY-SA-4.0",
}


def _many(registry, licence, names, **options):
    return [Source(registry, name, _DIFFERS.get(name, licence), **options) for name in names.split()]


CODE = "go rs java md rst txt html ex"
# The order matters: a paragraph that several sources hold is kept where it comes first. Books and manuals come first.
SOURCES = [
    *_many("debian", PSF, "python3.11"),
    *_many("debian", "PostgreSQL", "postgresql-15", endings="sgml"),
    *_many("debian", "Artistic-1.0-Perl", "perl", endings="pod pm"),
    *_many("deb", "public domain", "sqlite3-doc"),
    *_many("debian", BSD, "python-django sympy cmake jinja2 ghc"),
    *_many("debian", "BSD-2-Clause or Ruby", "ruby3.1"),
    *_many("debian", MIT, "nodejs rails mesa"),
    *_many("debian", APACHE, "apache2 openssl elixir-lang docker.io"),
    *_many("debian", "curl", "curl"),
    *_many("debian", "BSD-3-Clause", "dpdk", endings="rst h"),
    *_many("debian", "BSL-1.0", "boost1.74", endings="html"),
    *_many("debian", "Apache-2.0 with LLVM exception", "llvm-toolchain-15", endings="rst md h"),
    *_many("debian", APACHE, "erlang", endings="xml md", cap=12),
    *_many("debian", APACHE, "keystone swift ironic"),
    *_many("deb", APACHE, "nova-doc neutron-doc cinder-doc glance-doc heat-doc horizon-doc python-ironicclient-doc "
           "python-openstackclient-doc python-openstacksdk-doc python-oslo.config-doc python-taskflow-doc "
           "python-dask-doc python-nipype-doc python-pymongo-doc python-elasticsearch-doc python-aiohttp-doc"),
    *_many("deb", BSD, "python-scipy-doc python-pandas-doc python-astropy-doc sphinx-doc python-celery-doc "
           "python-skimage-doc python-sklearn-doc python-statsmodels-doc python-xarray-doc python-distributed-doc "
           "python-ipython-doc python-biopython-doc python-tables-doc python-h5py-doc python-scrapy-doc "
           "python-werkzeug-doc python-flask-doc python-kombu-doc python-jinja2-doc python-lxml-doc python-rdflib-doc "
           "python-dipy-doc python-cherrypy3-doc python-traitlets-doc python-vispy-doc"),
    *_many("deb", MIT, "python-sqlalchemy-doc twisted-doc python-pytest-doc python-setuptools-doc python-pydicom-doc "
           "python-nibabel-doc python-gevent-doc python-attr-doc python-mako-doc python-jsonschema-doc "
           "python-bottle-doc python-lark-doc"),
    *_many("deb", APACHE, "python-tornado-doc python-requests-doc"),
    *_many("pypi", BSD, "numpy scipy pandas scikit-learn statsmodels astropy networkx scikit-image numba seaborn mne "
           "sunpy yt nilearn biopython dask distributed celery sphinx dipy"),
    *_many("pypi", "matplotlib (PSF-based)", "matplotlib"),
    *_many("pypi", MIT, "sqlalchemy twisted torch-geometric pymatgen nibabel langchain-core optuna spacy "
           "azure-mgmt-network azure-mgmt-compute azure-mgmt-web azure-ai-ml azure-cosmos azure-storage-blob"),
    *_many("pypi", BSD, "sktime"),
    *_many("pypi", APACHE, "transformers tensorflow-cpu keras jax flax optax mlflow apache-airflow-core ray pennylane "
           "qiskit nltk lightning xarray aiohttp kubernetes openmdao pymc arviz nipype sentence-transformers diffusers "
           "accelerate datasets peft"),
    *_many("debian", BSD, "golang-1.19 guava-libraries protobuf python-cryptography", endings=CODE, cap=10),
    *_many("debian", "MIT or Apache-2.0", "rustc", endings="rs md", cap=12),
    *_many("debian", APACHE, "android-platform-frameworks-base", endings="java html", cap=25),
    *_many("debian", APACHE, "libspring-java netty groovy kotlin tomcat9 ant maven jetty9 zookeeper apache-log4j2 "
           "libcommons-lang3-java kubernetes etcd prometheus", endings="java go md html xml rst", cap=10),
    *_many("debian", APACHE, "opencv abseil grpc", endings="h hpp md markdown py"),
    *_many("debian", BSD, "vtk9", endings="h md rst py"),
    *_many("pypi", APACHE, "botocore", endings="json.gz", cap=40),
    *_many("pypi", APACHE, "google-api-python-client", endings="json", cap=25),
    *_many("pypi", APACHE, "google-cloud-aiplatform google-ads", endings="py", cap=6),
]  # fmt: skip

# Share-alike text may be learned from, but is not passed on: no such document gets into the token files that ship.
SHARE_ALIKE = re.compile(r"deb/python-celery-doc/|debian/rails/guides/")

_SKIP = re.compile(
    r"(?i)(^|/)(tests?|testing|testdata|test_data|vendor|vendored|_vendor|third_?party|3rdparty|node_modules|external|"
    r"extern|deps|locale|po|_sources|_modules|_static|licen[cs]es?|debian)/|(^|/)(licen[cs]e|copying|copyright|authors|"
    r"news|changes|changelog|genindex|search|notice|about_)[^/]*$|paginators|waiters|endpoint-rule"
)
_IN_DOCS = re.compile(r"(?i)(^|/)(docs?|documentation|manual|doc-src|guides|help|man\w*|htdocs|users_guide)(/|$)")


def wanted(source: Source, path: str) -> bool:
    """Whether a file of a package is read: by its ending, outside tests, translations and vendored code."""
    path = re.sub(r"^\./", "", path)
    if not any(path.endswith("." + e) for e in source.endings.split()) or _SKIP.search(path):
        return False
    return bool(path.endswith((".py", ".go", ".rs", ".java", ".h", ".hpp", ".rb", ".ex", ".json", ".gz", ".md", ".rst",
                               ".markdown", ".pod", ".pm", ".sgml")) or _IN_DOCS.search(path))  # fmt: skip


def download(source: Source, folder: Path, version: str = "") -> list[Path]:
    """Fetch a package into folder/registry/name, unless it is there already, and return its archives.

    `version` pins a wheel. A Debian release holds one version of a package, so there the release decides.
    """
    folder = folder / source.key
    if not folder.exists():
        folder.mkdir(parents=True)
        command = {
            "debian": ["apt-get", "source", "--download-only", "-qq", source.name],
            "deb": ["apt-get", "download", "-qq", source.name],
            "pypi": ["pip", "download", "-q", "--no-deps", "--only-binary=:all:", source.name],
        }[source.registry]
        if version and source.registry == "pypi":
            command[-1] += f"=={version}"
        subprocess.run(command, cwd=folder, check=False)
        if not any(folder.iterdir()):
            folder.rmdir()
    kinds = {"debian": "*.orig*.tar.*", "deb": "*.deb", "pypi": "*.whl"}
    return sorted(p for p in folder.glob(kinds[source.registry]) if p.suffix != ".asc")


def version_of(archive: Path) -> str:
    """The version in an archive's name; of a Debian source package the upstream version, without Debian's revision."""
    if archive.suffix == ".whl":
        return archive.name.split("-")[1]
    return archive.name.split("_")[1].split(".orig")[0].replace("%3a", ":")


def members(archive: Path, source: Source) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of the wanted files of an archive, read in place."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as z:
            for path in z.namelist():
                if wanted(source, path):
                    yield path, z.read(path)
        return
    pipe = None
    if archive.suffix == ".deb":
        pipe = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE)
        tar = tarfile.open(fileobj=pipe.stdout, mode="r|")
    else:
        tar = tarfile.open(archive, "r|*")
    with tar:
        for member in tar:
            path = member.name if pipe else member.name.partition("/")[2]
            if member.isfile() and member.size < 20_000_000 and wanted(source, path):
                yield path, tar.extractfile(member).read()
    if pipe:
        pipe.wait()
