"""Files, processes, devices and progress: what a long run needs whatever it computes.

Files are written atomically and as JSON or safetensors; a run records its arguments, so that a later call can resume it;
tasks run in worker processes that may raise or be killed; progress goes to tqdm bars and to a callback. Nothing here
depends on environments or models, so every other package may use it.

Example:
    >>> from worldmodel.runtime import Progress, Reporter
    >>> with Reporter(bars=False, listener=lambda p: print(p.stage, p.done, "of", p.total)) as report:
    ...     report(Progress("collect", 3, 10, unit="episode"))
    collect 3 of 10
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.runtime.cluster import dask_executor as dask_executor
    from worldmodel.runtime.device import PRECISIONS as PRECISIONS
    from worldmodel.runtime.device import Precision as Precision
    from worldmodel.runtime.device import check_device as check_device
    from worldmodel.runtime.device import choose_device as choose_device
    from worldmodel.runtime.device import fast_precision as fast_precision
    from worldmodel.runtime.device import float32_default as float32_default
    from worldmodel.runtime.device import missing_operation as missing_operation
    from worldmodel.runtime.device import resolve_precision as resolve_precision
    from worldmodel.runtime.directories import formats_in as formats_in
    from worldmodel.runtime.directories import is_being_replaced as is_being_replaced
    from worldmodel.runtime.directories import other_output as other_output
    from worldmodel.runtime.directories import prepare_directory as prepare_directory
    from worldmodel.runtime.directories import remove_temporaries as remove_temporaries
    from worldmodel.runtime.directories import require_disk as require_disk
    from worldmodel.runtime.disk_errors import naming as naming
    from worldmodel.runtime.extras import EXTRAS as EXTRAS
    from worldmodel.runtime.extras import has_extra as has_extra
    from worldmodel.runtime.extras import missing_extra as missing_extra
    from worldmodel.runtime.extras import require_extras as require_extras
    from worldmodel.runtime.files import read_json as read_json
    from worldmodel.runtime.files import write_json as write_json
    from worldmodel.runtime.functions import imported_function as imported_function
    from worldmodel.runtime.hub import HubError as HubError
    from worldmodel.runtime.hub import HubName as HubName
    from worldmodel.runtime.hub import local_path as local_path
    from worldmodel.runtime.hub import upload_directory as upload_directory
    from worldmodel.runtime.integers import check_integer as check_integer
    from worldmodel.runtime.integers import check_integers as check_integers
    from worldmodel.runtime.kept import Kept as Kept
    from worldmodel.runtime.keywords import explains_keywords as explains_keywords
    from worldmodel.runtime.locks import LockedError as LockedError
    from worldmodel.runtime.locks import locked as locked
    from worldmodel.runtime.model_card import CARD_FILE as CARD_FILE
    from worldmodel.runtime.model_card import ModelCard as ModelCard
    from worldmodel.runtime.model_card import is_own_text as is_own_text
    from worldmodel.runtime.model_card import write_card as write_card
    from worldmodel.runtime.model_files import ModelFiles as ModelFiles
    from worldmodel.runtime.model_files import SavedModel as SavedModel
    from worldmodel.runtime.numbers import check_flags as check_flags
    from worldmodel.runtime.numbers import check_names as check_names
    from worldmodel.runtime.numbers import check_number as check_number
    from worldmodel.runtime.numbers import check_numbers as check_numbers
    from worldmodel.runtime.optimizer_state import load_optimizer_tensors as load_optimizer_tensors
    from worldmodel.runtime.optimizer_state import optimizer_tensors as optimizer_tensors
    from worldmodel.runtime.process import interrupt_between_steps as interrupt_between_steps
    from worldmodel.runtime.process import keep_freed_memory as keep_freed_memory
    from worldmodel.runtime.progress import Listener as Listener
    from worldmodel.runtime.progress import Progress as Progress
    from worldmodel.runtime.progress import Reporter as Reporter
    from worldmodel.runtime.provenance import command_line as command_line
    from worldmodel.runtime.provenance import describe_machine as describe_machine
    from worldmodel.runtime.provenance import machine_name as machine_name
    from worldmodel.runtime.provenance import read_runs as read_runs
    from worldmodel.runtime.provenance import record_run as record_run
    from worldmodel.runtime.provenance import source_commit as source_commit
    from worldmodel.runtime.provenance import versions as versions
    from worldmodel.runtime.ranks import LeaderFailedError as LeaderFailedError
    from worldmodel.runtime.ranks import RankLostError as RankLostError
    from worldmodel.runtime.ranks import Ranks as Ranks
    from worldmodel.runtime.ranks import joined_ranks as joined_ranks
    from worldmodel.runtime.ranks import led as led
    from worldmodel.runtime.ranks import started_ranks as started_ranks
    from worldmodel.runtime.reading import InvalidFileError as InvalidFileError
    from worldmodel.runtime.reading import NewerVersionError as NewerVersionError
    from worldmodel.runtime.reading import check_regular as check_regular
    from worldmodel.runtime.reading import file_errors as file_errors
    from worldmodel.runtime.reading import open_regular as open_regular
    from worldmodel.runtime.reading import parse_json as parse_json
    from worldmodel.runtime.reading import read_bytes as read_bytes
    from worldmodel.runtime.registry import Registry as Registry
    from worldmodel.runtime.registry import UnknownClassError as UnknownClassError
    from worldmodel.runtime.remote import RemoteError as RemoteError
    from worldmodel.runtime.remote import RemoteObject as RemoteObject
    from worldmodel.runtime.runs import RunConfig as RunConfig
    from worldmodel.runtime.runs import check_same_run as check_same_run
    from worldmodel.runtime.runs import describe as describe
    from worldmodel.runtime.runs import jsonable as jsonable
    from worldmodel.runtime.runs import prepare_run as prepare_run
    from worldmodel.runtime.runs import single_writer as single_writer
    from worldmodel.runtime.tasks import Runner as Runner
    from worldmodel.runtime.tensor_files import digest_tensors as digest_tensors
    from worldmodel.runtime.tensor_files import load_tensors as load_tensors
    from worldmodel.runtime.tensor_files import save_tensors as save_tensors
    from worldmodel.runtime.threads import keeps_threads as keeps_threads
    from worldmodel.runtime.threads import set_threads as set_threads
    from worldmodel.runtime.watch import StepWatch as StepWatch
    from worldmodel.runtime.workers import WorkerConfig as WorkerConfig
    from worldmodel.runtime.workers import run_here as run_here
    from worldmodel.runtime.workers import run_in_processes as run_in_processes
    from worldmodel.runtime.writing import TEMPORARY_SUFFIX as TEMPORARY_SUFFIX
    from worldmodel.runtime.writing import write_bytes as write_bytes
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "cluster": "dask_executor",
            "device": (
                "PRECISIONS Precision check_device choose_device fast_precision float32_default missing_operation "
                "resolve_precision"
            ),
            "directories": "formats_in is_being_replaced other_output prepare_directory remove_temporaries require_disk",
            "disk_errors": "naming",
            "extras": "EXTRAS has_extra missing_extra require_extras",
            "files": "read_json write_json",
            "functions": "imported_function",
            "hub": "HubError HubName local_path upload_directory",
            "integers": "check_integer check_integers",
            "kept": "Kept",
            "keywords": "explains_keywords",
            "locks": "LockedError locked",
            "model_card": "CARD_FILE ModelCard is_own_text write_card",
            "model_files": "ModelFiles SavedModel",
            "numbers": "check_flags check_names check_number check_numbers",
            "optimizer_state": "load_optimizer_tensors optimizer_tensors",
            "process": "interrupt_between_steps keep_freed_memory",
            "progress": "Listener Progress Reporter",
            "provenance": "command_line describe_machine machine_name read_runs record_run source_commit versions",
            "ranks": "LeaderFailedError RankLostError Ranks joined_ranks led started_ranks",
            "reading": "InvalidFileError NewerVersionError check_regular file_errors open_regular parse_json read_bytes",
            "registry": "Registry UnknownClassError",
            "remote": "RemoteError RemoteObject",
            "runs": "RunConfig check_same_run describe jsonable prepare_run single_writer",
            "tasks": "Runner",
            "tensor_files": "digest_tensors load_tensors save_tensors",
            "threads": "keeps_threads set_threads",
            "watch": "StepWatch",
            "workers": "WorkerConfig run_here run_in_processes",
            "writing": "TEMPORARY_SUFFIX write_bytes",
        },
    )
