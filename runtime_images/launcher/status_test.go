package main

import "testing"

// A token or a health that arrives late must not make an engine ready that drains or has failed.
func TestPhasesThatAreFinal(t *testing.T) {
	for _, row := range []struct{ from, to, want phase }{
		{checking, starting, starting},
		{starting, generating, generating},
		{generating, ready, ready},
		{ready, draining, draining},
		{draining, generating, draining},
		{draining, ready, draining},
		{draining, failed, failed},
		{failed, ready, failed},
		{failed, draining, failed},
	} {
		s := newStatus(newProber(1, "m"), newEngineNotes(""))
		s.phase = row.from
		s.enter(row.to, "")
		if s.phase != row.want {
			t.Errorf("%s to %s: %s; want %s", row.from.state, row.to.state, s.phase.state, row.want.state)
		}
	}
}
