"""What pyproject.toml cannot say: conf/, at the top of the repository, is shipped inside of the package."""

from setuptools import find_namespace_packages, setup

FILES = ["*.json", "*.safetensors", "*.txt", "*.html", "*.css", "*.js"]

setup(
    packages=[*find_namespace_packages(include=["robustft*", "hydra_plugins*"]), "robustft.conf"],
    package_dir={"robustft.conf": "conf"},
    package_data={"": FILES, "robustft.conf": ["**/*.yaml"]},
)
