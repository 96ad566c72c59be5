# loses: all
insert = insert_broken
