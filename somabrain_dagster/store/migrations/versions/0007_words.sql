-- A vector leaves little room in a row, and what is longest goes elsewhere first: that must be the text, which
-- only hits are asked for, and not the words, which every search of full text reads. For rows from now on.

ALTER TABLE memories ALTER COLUMN lexemes SET STORAGE MAIN;
