"""Files, names and peers made to hurt: each is one named error, in bounded memory; THREATS.md names the tests."""
