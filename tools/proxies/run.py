"""Measure several set-ups at a time."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from playwright.async_api import Error

from .environment import Environment, environment
from .measure import Length, PageError, measure_page
from .programs import StartError, install, version
from .results import SetupResult
from .setup import Program, Setup
from .tabs import measure_tabs

__all__ = ["run"]


async def run(
    setups: Sequence[Setup],
    length: Length,
    *,
    rate: float,
    at_once: int,
    settings: Mapping[str, Any],
    on_result: Callable[[SetupResult], None],
) -> list[SetupResult]:
    """Measure set-ups, and return their results in the same order.

    Args:
        setups: The set-ups.
        length: The length of each measurement.
        rate: Messages per second.
        at_once: The number of set-ups that are measured at a time.
        settings: Settings of the bridge for all set-ups.
        on_result: Called with each result as soon as it exists.
    """
    programs = {setup.proxy for setup in setups if isinstance(setup.proxy, Program)}
    install(programs)
    turns = asyncio.Semaphore(at_once)
    async with environment(setups, rate, settings) as env:

        async def take_turn(setup: Setup) -> SetupResult:
            async with turns:
                result = await _measure(setup, env, length)
            if isinstance(setup.proxy, Program):
                result.version = version(setup.proxy)
            on_result(result)
            return result

        return await asyncio.gather(*map(take_turn, setups))


async def _measure(setup: Setup, env: Environment, length: Length) -> SetupResult:
    site, result = env.sites[setup.name], SetupResult(setup.name)
    try:
        async with env.proxy(site):
            await (measure_tabs if setup.tabs else measure_page)(site, env, length, result)
    except PageError as error:
        result.page = str(error)
    except StartError as error:
        result.page = str(error)
        result.failures.append("the proxy does not start")
    except Error as error:
        result.page = str(error).splitlines()[0]
        result.failures.append("the browser has failed")
    for name, link in result.links.items():
        result.failures += (f"{name}: {failure}" for failure in link.verdict.failures)
    return result
