"""What a coordinator hears from its members, and what it answers around the protocol; it opens no round by itself."""

import time
from collections.abc import Mapping, Sequence

from secagg import wire
from secagg.errors import ProtocolError
from secagg.messages import Confirmation
from secagg.rpc import frames
from secagg.rpc.frames import Received
from secagg.service import dialogue
from secagg.service.dialogue import Message
from secagg.service.errors import DialogueError
from secagg.service.events import Left, TurnedAway
from secagg.service.spans import with_number
from secagg.service.standing import Standing
from secagg.steps import ADVERTISE_KEYS


class Hearing(Standing):
    """Takes what members say; see `Standing` for what it is made of."""

    async def _hear(self, seconds: float) -> None:
        received = await self.mailbox.receive(max(seconds, 0.0))
        if received is not None:
            try:
                await self._take(received)
            except DialogueError as error:
                self.note_of(received.sender, str(error))

    async def _take(self, received: Received) -> None:
        site = received.sender
        match received.kind:
            case frames.HELLO:  # a new process, or this one is new: it introduces itself
                again = self.presence.began(site)
                self._asked_again.pop(site, None)
                self.saw.pop(site, None)
                self.parting.pop(site, None)
                self.came(site, True)
                if again:  # where only this process is new, the member may still have to repeat its confirmation
                    await self._driven(lambda: self.driver.anew(site, time.monotonic()))
            case frames.GONE:
                self.presence.gone(site)
                self.came(site, False)
            case frames.BACK:
                for member in self.presence.back(site):
                    self.driver.back(member)
                self.came(site, True)
            case dialogue.Ready.kind:
                await self._introduced(site, received.payload)
            case kind:
                await self._answer(site, self._dialogue.read(kind, received.payload, site))

    async def _answer(self, site: str, message: Message | None) -> None:
        match message:
            case dialogue.Busy():
                self.presence.away_with(site, message.reason)
                await self._over(site)
                if self.ended:
                    self._dismiss([site])
            case dialogue.Leaving():
                await self._left(site, message.reason)
            case dialogue.Failed():
                self.presence.failed(site)
                await self._over(site)
                if site not in self.presence.refused:  # of whom it was said why
                    self.note_of(site, f"{site} stopped: {message.reason}")
            case dialogue.Done() if self.ended and site not in self.done:
                self.done.add(site)
                await self._members()
            case dialogue.Protocolled():
                await self._protocol(site, message.data)
            case None | dialogue.Done():
                pass
            case _:
                self.application.heard(site, message)

    async def _protocol(self, site: str, data: bytes) -> None:
        if self._open:
            await self._driven(lambda: self.driver.receive(site, data, time.monotonic()), (site, len(data)))
        if site in self.owed and self._confirms(site, data):
            self.owed.discard(site)
            if site not in self._repeated:  # a process that confirms from its marks knows nothing else of the round
                self.saw[site] = with_number(self.saw.get(site, ()), self.book.receipts[-1].round_number)

    def _confirms(self, site: str, data: bytes) -> bool:
        """Whether this is the member's confirmation of the last sum."""
        try:
            message = wire.decode_from_client(data)
            if not isinstance(message, Confirmation) or (message.client_id, message.head) != (site, self.book.head):
                return False
            message.verify(self.federation.pinned[site], "S-21", site)
        except ProtocolError:
            return False
        return True

    async def _over(self, site: str) -> None:
        """A member is in no attempt any more."""
        await self._driven(lambda: self.driver.over(site, time.monotonic()))

    async def _left(self, site: str, reason: str) -> None:
        news = site not in self.presence.left
        self.presence.left.add(site)
        self.left_because[site] = reason
        await self._members()
        if news:
            self.emit(Left(site, reason))
        await self._over(site)

    async def _introduced(self, site: str, payload: bytes) -> None:
        """A member says what it runs and where it is; it takes part if that fits, and is told what it lacks."""
        try:
            ready = dialogue.Ready.unpacked(payload, site)
        except DialogueError:
            await self._refuse(site, f"{site} runs another version than the coordinator ({self.application.release})")
            return
        if why := self._unlike(site, ready) or self._yesterday(site, ready):
            await self._refuse(site, why)
            return
        odd = self.odd(site, ready.says)
        for other, why in odd.items():
            await self._refuse(other, why)
        if site in odd:
            return
        if ready.spent is not None and ready.spent != self.spent.get(site):
            self.spent[site] = ready.spent
            await self._members()
        self.presence.refused.pop(site, None)
        self.saw[site] = tuple(ready.saw)
        news = self.presence.free(site, ready.unreplayed)
        if self.ended:
            self._dismiss([site])
            return
        self.driver.back(site)
        placed = await self._placed(site, ready)  # a member of the next attempt takes an older sum for a lie (C-20)
        if not placed and site in self.owed and (result := self.journal.get("result")):
            self._repeated.add(site)
            self._send([site], dialogue.Protocolled(result))
        self._show_transcripts(site, ready.unreplayed, news)

    async def _placed(self, site: str, ready: dialogue.Ready) -> bool:
        """A member that is in the attempt that runs is told again what it may have lost; any other is not waited for.

        What it said before it had the round start says nothing of the attempt, however often it comes: it is waited
        for while that helps, and asked once more, for another process of it may have had the start.
        """
        session, now = self.driver.session, (self.facts.round, self.facts.attempt)
        early = ready.inside is None and not ready.unreplayed and max(ready.joined, ready.asked) < now
        begins = session is not None and session.step == ADVERTISE_KEYS
        if self.driver.running and (ready.inside == now or (early and begins)):
            if not early or self._asked_again.get(site) != now:
                self._asked_again[site] = now
                await self._driven(lambda: self.driver.again(site))
            return True
        await self._over(site)
        return False

    def _unlike(self, site: str, ready: dialogue.Ready) -> str:
        """What makes this member the odd one out: it is named to both, before anything is charged."""
        for name, (ours, what) in self._same.items():
            theirs = getattr(ready, name)
            if theirs != ours:
                whole = name in ("release", "run") or theirs[:8] == ours[:8]
                shown = [text if whole else text[:8] for text in (theirs, ours)]
                both = f"{site} was started with another {what} ({shown[0]}) than the coordinator ({shown[1]})"
                return f"{both}: compare the two, and start with the same one"
        return ""

    def odd(self, site: str, says: str) -> Mapping[str, str]:
        """Members, each with a sentence, that are the odd ones out now that this one declared what it says."""
        return {}

    def _yesterday(self, site: str, ready: dialogue.Ready) -> str:
        """Marks or spending that fell: a store that was wiped, or restored from a copy."""
        seen, told = self.joined.get(site, (0, 0)), self.spent.get(site, 0.0)
        remedy = "bring back the newest state folder; its patients paid what they paid"
        if ready.joined < seen:
            return (
                f"{site} took part in round {seen[0]} (attempt {seen[1]}) and its marks know nothing of it: its state "
                f"folder was wiped, or restored from a copy; {remedy}"
            )
        if ready.spent is not None and ready.spent < told - 1e-9:
            return (
                f"{site} says that epsilon {ready.spent:.4g} was spent, and said {told:.4g} before: its state folder "
                f"was wiped, or restored from a copy; {remedy}"
            )
        return ""

    async def _refuse(self, site: str, reason: str) -> None:
        if self.presence.refuse(site, reason):
            self.emit(TurnedAway(site, reason))
            self._send([site], dialogue.Refused.because(reason))
        await self._over(site)

    def _show_transcripts(self, site: str, unreplayed: Sequence[str], news: bool) -> None:
        """What a member has to replay before its next round (C-05), and the last round in any case."""
        if self.application.replayed and self.book.receipts and not self.driver.unpublished:
            self._send_transcript(self.book.receipts[-1].round_id.hex(), [site])
        here = [round_id for round_id in unreplayed if self._send_transcript(round_id, [site])]
        if news:
            coming = [self.book.receipts[-1].round_id.hex()] if self.driver.unpublished else []
            whole = set(unreplayed) <= {*here, *coming}
            there = "which it gets" if whole else "which is not here: its operator decides"
            self.note_of(site, f"{site} waits for the transcript of round {', '.join(unreplayed)}, {there}")
