"""What pyproject.toml cannot say: the index that nbdev makes for the documentation is not part of a wheel."""
from setuptools import setup
from setuptools.command.build_py import build_py


class Package(build_py):
    def find_package_modules(self, package, package_dir):
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != '_modidx']


setup(cmdclass={'build_py': Package})
